"""The stage that lists images."""

import pytest

from dpar.data.images import ImageIndex
from dpar.errors import InputError, run_command
from dpar.stages import generate_images
from dpar.stages.index_images import main
from tests.data.samples import folder_of_images
from tests.stages.experiments import write_experiment


def flags(experiment, split, tmp_path):
    return ["--experiment", str(experiment), "--split", split, "--output", str(tmp_path / f"{split}.json")]


def test_lists_generated_images(tmp_path, capsys):
    experiment = write_experiment(tmp_path)
    generated = str(tmp_path / "val.parquet")
    generate_images.main(["--experiment", str(experiment), "--split", "val", "--output", generated])
    main([*flags(experiment, "val", tmp_path), "--images", generated])
    index = ImageIndex.load(tmp_path / "val.json")
    assert index.class_counts.tolist() == [1] * 8
    assert (index.resolution, index.images.kind) == (64, "parquet")
    assert "8 images, 8 of 8 classes with 1 to 1 images each, 0 left out" in capsys.readouterr().out
    with pytest.raises(InputError, match="--images"):
        main(flags(experiment, "val", tmp_path))


def test_lists_the_users_images_of_each_split(tmp_path):
    for split, each in (("train", 3), ("val", 2)):
        folder_of_images(tmp_path / split, each=each)
    folders = {split: str(tmp_path / split) for split in ("train", "val")}
    experiment = write_experiment(tmp_path, source="folder", num_classes=3, **folders)
    for split, count in (("train", 9), ("val", 6)):
        main(flags(experiment, split, tmp_path))
        assert len(ImageIndex.load(tmp_path / f"{split}.json")) == count


def test_held_out_images_can_be_fewer_evenly_spaced_and_training_images_are_all_used(tmp_path):
    for split in ("train", "val"):
        folder_of_images(tmp_path / split, each=4)
    folders = {split: str(tmp_path / split) for split in ("train", "val")}
    experiment = write_experiment(tmp_path, source="folder", num_classes=3, max_val=5, **folders)
    for split in ("train", "val"):
        main(flags(experiment, split, tmp_path))
    every, some = (ImageIndex.load(tmp_path / f"{split}.json") for split in ("train", "val"))
    assert len(every) == 12
    assert some.keys == [every.keys[i] for i in (0, 3, 6, 8, 11)]
    assert some.class_counts.tolist() == [2, 1, 2]


def test_a_split_that_cannot_be_used_is_said_and_leaves_no_index(tmp_path, capsys):
    folder_of_images(tmp_path / "train")
    (tmp_path / "train/bee/1.png").write_bytes(b"damaged")
    (tmp_path / "val").mkdir()
    folders = {split: str(tmp_path / split) for split in ("train", "val")}
    experiment = write_experiment(tmp_path, source="folder", num_classes=3, **folders)
    for split, message in (("train", "bee/1.png (cannot identify image file)"), ("val", "no sub-folders")):
        assert run_command(main, flags(experiment, split, tmp_path)) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / f"{split}.json").exists()
    experiment = write_experiment(tmp_path, source="folder", num_classes=3, max_unreadable=0.2, **folders)
    main(flags(experiment, "train", tmp_path))
    assert len(ImageIndex.load(tmp_path / "train.json")) == 8
