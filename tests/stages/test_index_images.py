"""The stage that lists images."""

import os
import time

import numpy as np
import pytest

from dpar.data.changes import compared
from dpar.data.images import ImageIndex, open_images
from dpar.data.subsets import first_of_classes, spread_over_classes
from dpar.errors import InputError, run_command
from dpar.stages import generate_images
from dpar.stages.index_images import main
from tests.data.samples import folder_of_images, image_bytes, parquet_of_images, sample_image, tar_of_images
from tests.stages.experiments import write_experiment


def flags(experiment, split, tmp_path):
    """The stage's, with the index of the training images, if it is there, for the others' classes."""
    known = tmp_path / "train.json"
    classes = ["--classes-of", str(known)] if split == "val" and known.exists() else []
    return ["--experiment", str(experiment), "--split", split, "--output", str(tmp_path / f"{split}.json"), *classes]


def two_folders(tmp_path, train, val, each=2, **settings):
    """An experiment of two folders with these classes and different images."""
    for first, (split, classes) in enumerate((("train", train), ("val", val))):
        for label, name in enumerate(classes):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(each):
                data = image_bytes(sample_image(10_000 * first + 100 * label + i))
                (tmp_path / split / name / f"{i}.png").write_bytes(data)
    settings = {"source": "folder", "num_classes": len(train)} | settings
    return write_experiment(tmp_path, train=str(tmp_path / "train"), val=str(tmp_path / "val"), **settings)


def indexed(tmp_path, experiment, split):
    main(flags(experiment, split, tmp_path))
    return ImageIndex.load(tmp_path / f"{split}.json")


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
    experiment = two_folders(tmp_path, ["a", "b", "c"], ["a", "b", "c"])
    for split in ("train", "val"):
        assert len(indexed(tmp_path, experiment, split)) == 6


def test_classes_are_named_by_a_list_and_told(tmp_path, capsys):
    (tmp_path / "names.txt").write_text("tulips\n<b>\x1b[31m</b>\nc\n")
    experiment = two_folders(tmp_path, ["a", "b", "c"], ["a", "b", "c"], classes=str(tmp_path / "names.txt"))
    index = indexed(tmp_path, experiment, "train")
    assert index.images.classes == ["a", "b", "c"], "held-out classes are found by the names of the images"
    assert "classes: a=tulips, b=<b>\\x1b[31m</b>, c=c\n" in capsys.readouterr().out
    (tmp_path / "names.txt").write_text("tulips\n")
    with pytest.raises(InputError, match=r"images\.classes: .* holds 1 names, expected a name for each of the 3"):
        main(flags(experiment, "val", tmp_path))


def test_classes_of_one_name_are_told(tmp_path, capsys):
    (tmp_path / "names.txt").write_text("x\nx\ny\n")
    experiment = two_folders(tmp_path, ["a", "b", "c"], ["a", "c"], classes=str(tmp_path / "names.txt"))
    (tmp_path / "val/b").mkdir()  # an empty class folder
    for split, said in (("train", True), ("val", False)):
        assert len(indexed(tmp_path, experiment, split)) == {"train": 6, "val": 4}[split]
        assert ("have one name: x (0, 1); if they are one class" in capsys.readouterr().err) == said


def test_held_out_images_can_be_fewer_evenly_spaced_and_training_images_are_all_used(tmp_path):
    experiment = two_folders(tmp_path, ["a", "b", "c"], ["a", "b", "c"], each=4, max_val=5)
    every, some = (indexed(tmp_path, experiment, split) for split in ("train", "val"))
    assert len(every) == 12
    assert some.keys == [every.keys[i] for i in (0, 3, 6, 8, 11)]
    assert some.class_counts.tolist() == [2, 1, 2]


def test_training_images_can_be_fewer_than_their_classes(tmp_path):
    experiment = two_folders(tmp_path, ["a", "b", "c"], ["a", "b", "c"], each=4, max_train=2)
    few, every = (indexed(tmp_path, experiment, split) for split in ("train", "val"))
    assert (few.class_counts.tolist(), few.images.classes) == ([1, 1, 0], ["a", "b", "c"])
    assert len(every) == 12


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9, 12, 13])
def test_the_first_training_images_of_each_class_are_taken_in_turn(count):
    labels = np.array([2, 0, 2, 1, 2, 0, 2, 2, 1, 2, 2, 2, 2], np.int32)
    chosen = first_of_classes(labels, count)
    turns = sorted(range(len(labels)), key=lambda i: (np.count_nonzero(labels[:i] == labels[i]), labels[i]))
    assert chosen.tolist() == sorted(turns[:count])


@pytest.mark.parametrize("count", [4, 10, 20, 25, 49])
def test_fewer_held_out_images_are_of_all_classes_alike_though_classes_take_turns(count):
    labels = np.arange(50, dtype=np.int32) % 10  # every 2.5th image is of eight classes only
    chosen = spread_over_classes(labels, count)
    assert len(set(chosen.tolist())) == count
    assert (np.diff(chosen) > 0).all()
    counts = np.bincount(labels[chosen], minlength=10)
    assert counts.max() - counts.min() <= 1
    first = chosen[labels[chosen] == 0] // 10  # places within a class: not its first images only
    assert count < 20 or first.max() - first.min() >= 2


def test_a_share_of_the_training_images_is_held_out_without_copying(tmp_path):
    folder = folder_of_images(tmp_path / "photos", each=10)
    settings = {"source": "folder", "train": str(folder), "held_out": 0.2, "num_classes": 3}
    experiment = write_experiment(tmp_path, **settings)
    train, val = (indexed(tmp_path, experiment, split) for split in ("train", "val"))
    assert (train.class_counts.tolist(), val.class_counts.tolist()) == ([8] * 3, [2] * 3)
    assert {*train.keys} | {*val.keys} == {*open_images("folder", str(folder)).keys}
    assert compared(val, type(val.images).stamps(str(folder)), time.time()) is None, "what is elsewhere is not new"
    (folder / "ant" / "copy.png").write_bytes((folder / val.keys[0]).read_bytes())
    (folder / "ant" / "copy2.png").write_bytes((folder / val.keys[0]).read_bytes())
    indexed(tmp_path, experiment, "train")
    with pytest.raises(InputError, match=r"`images\.held_out`: remove the copies"):
        indexed(tmp_path, experiment, "val")


class TestClasses:
    def test_held_out_classes_take_the_training_images_numbers(self, tmp_path):
        experiment = two_folders(tmp_path, ["a", "b", "c", "d"], ["b", "d"])
        train, val = (indexed(tmp_path, experiment, split) for split in ("train", "val"))
        assert train.images.classes == val.images.classes == ["a", "b", "c", "d"]
        assert val.class_counts.tolist() == [0, 2, 0, 2]
        assert [key[0] for key in val.keys] == ["b", "b", "d", "d"]

    @pytest.mark.parametrize(
        ("val", "message"),
        [
            (["b", "c", "e"], "1 classes that the training images lack: e; the training images have a, b, c, d"),
            (["a", "B", "c", "d"], "B (names that differ by case are different: B is not b)"),
            (["0", "1", "2", "3"], "4 classes that the training images lack: 0, 1, 2, 3; the training images have a,"),
            (["a", "b", "c", "d", "e"], "these have a, b, c, d, e"),
        ],
    )
    def test_a_class_that_was_not_trained_on_is_refused(self, tmp_path, capsys, val, message):
        experiment = two_folders(tmp_path, ["a", "b", "c", "d"], val)
        indexed(tmp_path, experiment, "train")
        assert run_command(main, flags(experiment, "val", tmp_path)) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "val.json").exists()

    def test_names_are_matched_across_kinds_of_sources(self, tmp_path):
        two_folders(tmp_path, ["a", "b", "c"], [])
        members = [(f"{i}.png", image_bytes(sample_image(900 + i))) for i in range(2)]
        (tmp_path / "val").mkdir()
        tar_of_images(tmp_path / "val/0.tar", [*members, ("0.cls", b"0"), ("1.cls", b"1")])
        (tmp_path / "val/classes.json").write_text('["c", "b"]')
        places = {"train": str(tmp_path / "train"), "val": str(tmp_path / "val/*.tar"), "num_classes": 3}
        indexed(tmp_path, write_experiment(tmp_path, source="folder", **places), "train")
        val = indexed(tmp_path, write_experiment(tmp_path, source="webdataset", **places), "val")
        assert val.labels.tolist() == [2, 1]

    def test_numbers_alone_are_compared_as_they_are(self, tmp_path):
        paths = {}
        for first, split in enumerate(("train", "val")):
            files = [image_bytes(sample_image(100 * first + i)) for i in range(2)]
            paths[split] = str(parquet_of_images(tmp_path / f"{split}.parquet", files, [0, 1]))
        experiment = write_experiment(tmp_path, source="parquet", num_classes=2, **paths)
        indexed(tmp_path, experiment, "train")
        assert indexed(tmp_path, experiment, "val").labels.tolist() == [0, 1]

    def test_they_are_never_numbered_without_the_training_images(self, tmp_path):
        experiment = two_folders(tmp_path, ["a", "b"], ["a", "b"])
        with pytest.raises(InputError, match=r"give --classes-of index/train\.json"):
            main(flags(experiment, "val", tmp_path))


class TestSharedImages:
    def test_copies_under_another_label_are_told_each_and_others_beyond_a_few(self, tmp_path, capsys):
        experiment = two_folders(tmp_path, ["a", "b"], ["a"], each=100)
        one = (tmp_path / "train/a/7.png").read_bytes()
        (tmp_path / "train/b/8.png").write_bytes(one)
        assert len(indexed(tmp_path, experiment, "train")) == 200
        (said,) = [line for line in capsys.readouterr().err.splitlines() if "copies" in line]
        assert "1 of 200 images" in said
        assert "under another label, byte for byte: b/8.png (class 1) = a/7.png (class 0); correct the labels" in said
        for i in range(20, 23):
            (tmp_path / f"train/a/{i}.png").write_bytes(one)
        indexed(tmp_path, experiment, "train")
        said = [line for line in capsys.readouterr().err.splitlines() if "copies" in line]
        assert ["under another label" in line for line in said] == [True, False]
        assert "3 of 200 images" in said[1]

    def test_the_same_folder_as_both_splits_is_refused(self, tmp_path, capsys):
        two_folders(tmp_path, ["a", "b"], [])
        where = {"source": "folder", "num_classes": 2, "train": str(tmp_path / "train"), "val": str(tmp_path / "train")}
        experiment = write_experiment(tmp_path, **where)
        indexed(tmp_path, experiment, "train")
        assert run_command(main, flags(experiment, "val", tmp_path)) == 2
        said = capsys.readouterr().err
        assert "4 of 4 held-out images" in said
        assert "a/0.png = a/0.png, a/1.png = a/1.png, b/0.png = b/0.png, ...;" in said
        assert "`images.allow_shared: true`" in said
        experiment = write_experiment(tmp_path, **where, allow_shared=True)
        assert len(indexed(tmp_path, experiment, "val")) == 4
        assert "warning: 4 of 4 held-out images" in capsys.readouterr().err

    def test_a_few_copies_among_many_are_told_and_more_are_refused(self, tmp_path, capsys):
        experiment = two_folders(tmp_path, ["a"], ["a"], each=100)
        for name in ("x", "y"):
            (tmp_path / f"val/a/{name}.png").write_bytes((tmp_path / "train/a/7.png").read_bytes())
        indexed(tmp_path, experiment, "train")
        with pytest.raises(InputError, match=r"2 of 102 held-out images .*: a/x\.png = a/7\.png, a/y\.png = a/7\.png;"):
            main(flags(experiment, "val", tmp_path))
        (tmp_path / "val/a/y.png").unlink()
        capsys.readouterr()
        assert len(indexed(tmp_path, experiment, "val")) == 101
        assert "warning: 1 of 101 held-out images" in capsys.readouterr().err


def test_what_was_left_alone_is_said(tmp_path, capsys):
    experiment = two_folders(tmp_path, ["a"], ["a"])
    for name in ("a/1.txt", "a/2.txt", "about", "a/clip.mp4"):
        (tmp_path / "train" / name).write_text("")
    indexed(tmp_path, experiment, "train")
    said = capsys.readouterr().out
    assert "each, 2 smaller than 64 pixels and enlarged, 0 left out as unreadable; left alone: 2 .txt, " in said
    assert "1 without a suffix, 1 .mp4: " in said


def test_names_for_shells_pages_and_terminals_are_names_alone(tmp_path, capsys):
    odd = "$(touch out) `touch out`; <script>alert(1)<script> 'n\"\x1b[31m\n"
    experiment = two_folders(tmp_path, ["a", odd], ["a", odd])
    for split in ("train", "val"):
        for name in (b"\xff.png", b"\xe9\x1b.txt\x1b[31m"):
            with open(os.path.join(os.fsencode(tmp_path / split / "a"), name), "wb") as file:
                file.write(image_bytes(sample_image(len(split))))
    train, val = (indexed(tmp_path, experiment, split) for split in ("train", "val"))
    assert train.images.classes == val.images.classes == sorted(["a", odd])
    assert len(train) == len(val) == 5
    assert not list(tmp_path.rglob("out"))
    assert "\x1b" not in "".join(capsys.readouterr())


def test_a_split_that_cannot_be_used_is_said_and_leaves_no_index(tmp_path, capsys):
    experiment = two_folders(tmp_path, ["ant", "bee", "cat"], [], each=3)
    (tmp_path / "train/bee/1.png").write_bytes(b"damaged")
    (tmp_path / "val").mkdir()

    def refused(split, message):
        assert run_command(main, flags(experiment, split, tmp_path)) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / f"{split}.json").exists()

    refused("train", "bee/1.png (cannot identify image file)")
    folders = {split: str(tmp_path / split) for split in ("train", "val")}
    experiment = write_experiment(tmp_path, source="folder", num_classes=3, max_unreadable=0.2, **folders)
    assert len(indexed(tmp_path, experiment, "train")) == 8
    said = capsys.readouterr().err
    assert f"warning: 1 of 9 images of {tmp_path / 'train'} cannot be read and are left out: bee/1.png (cannot" in said
    refused("val", "no sub-folders")


def test_inputs_that_went_wrong_for_others(shared, tmp_path):
    cases = shared / "cases"
    if not cases.is_dir():
        pytest.skip("the folder ../shared/cases is not next to this checkout")

    def run(source, path, split="train"):
        paths = {"train": str(cases / path), "val": str(cases / "class_mismatch/val")}
        return indexed(tmp_path, write_experiment(tmp_path, source=source, num_classes=4, **paths), split)

    assert len(run("webdataset", "halfdots.tar")) == len(run("webdataset", "dots.tar")) == 24
    index = run("parquet", "hf_parquet/*.parquet")
    assert len(index) == 48
    assert index.images.classes == ["a", "b", "c", "d"]
    for source, path, message in (
        ("webdataset", "big.tar", r"label out of range: 5000000000 in 000003\.cls of"),
        ("webdataset", "cut.tar", "cut off"),
        ("parquet", "i64wrap.parquet", "label out of range: 4294967296 in row 0 of"),
    ):
        with pytest.raises(InputError, match=message):
            run(source, path)
    run("folder", "class_mismatch/train")
    with pytest.raises(InputError, match=r"lack: e; the training images have a, b, c, d, these have b, c, d, e"):
        run("folder", "class_mismatch/train", "val")


def test_numbers_as_names_that_are_not_their_labels_are_said(tmp_path, capsys):
    experiment = two_folders(tmp_path, [str(i) for i in range(11)], ["0"], each=1)
    index = indexed(tmp_path, experiment, "train")
    assert index.images.classes is not None
    assert index.images.classes[2] == "10"
    said = capsys.readouterr().err
    assert "another as their label: 10 has label 2, 2 has label 3, 3 has label 4" in said
    indexed(tmp_path, experiment, "val")
    assert "has label" not in capsys.readouterr().err, "once is enough"
