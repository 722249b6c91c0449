"""What is found in a folder of images before there is an experiment."""

import json

import pytest
from PIL import ExifTags, Image

from dpar.commands.init import looked
from dpar.data.survey import splits_of, survey
from dpar.errors import InputError
from tests.data.samples import folder_of_images, image_bytes, parquet_of_images, sample_image, tar_of_images


def test_a_folder_per_class_is_counted_and_its_sizes_and_damage_are_seen(tmp_path):
    folder = folder_of_images(tmp_path / "x", each=4)
    (folder / "bee" / "broken.png").write_bytes(b"no image")
    (folder / "cat" / "large.png").write_bytes(image_bytes(sample_image(7, width=90, height=60)))
    found = survey(folder)
    assert (found.source, found.train, found.val) == ("folder", str(folder), None)
    assert (found.images, found.classes, found.count) == ((4, 5, 5), ("ant", "bee", "cat"), 14)
    assert (found.smallest, found.largest, max(found.sides)) == ((20, 16), (90, 60), 60)
    assert found.read == 14
    assert len(found.unreadable) == 1
    assert found.unreadable[0].startswith("bee/broken.png (")


def test_images_that_would_be_read_otherwise_than_they_are_seen_are_counted(tmp_path):
    folder = folder_of_images(tmp_path / "x", each=4)
    image, exif = Image.new("RGB", (24, 16)), Image.Exif()
    for name, orientation in (("upright", 1), ("side", 6), ("mirror", 2), ("nonsense", 77)):
        exif[ExifTags.Base.Orientation] = orientation
        image.save(folder / "bee" / f"{name}.jpg", exif=exif)
    image.save(folder / "bee" / "broken.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    image.convert("RGBA").save(folder / "cat" / "clear.png")
    found = survey(folder)
    assert (found.turned, found.transparent, found.unreadable) == (2, 1, ())
    said = "\n".join(looked(found))
    assert "2 are turned or mirrored" in said
    assert "1 are transparent" in said


@pytest.mark.parametrize("val", ["val", "test", "validation"])
def test_folders_of_splits_are_known_by_their_names(tmp_path, val):
    folder_of_images(tmp_path / "x" / "train", each=2)
    folder_of_images(tmp_path / "x" / val, each=1)
    found = survey(tmp_path / "x")
    assert (found.train, found.val) == (str(tmp_path / "x/train"), str(tmp_path / "x" / val))
    assert (found.count, found.val_count) == (6, 3)


def test_tars_of_splits_that_a_list_alone_tells_apart_are_refused(tmp_path):
    splits = {"train": ["a-0.tar", "a-1.tar"], "validation": ["b-0.tar"], "test": ["c-0.tar"]}
    stated = {split: {"filenames": files, "shard_lengths": [1] * len(files)} for split, files in splits.items()}
    (tmp_path / "_info.json").write_text(json.dumps({"splits": stated}))
    for number, name in enumerate(("a-0.tar", "a-1.tar")):
        tar_of_images(tmp_path / name, {f"{number}.png": image_bytes(sample_image(1)), f"{number}.cls": b"0"})
    assert survey(tmp_path).count == 2, "the others were not fetched"
    tar_of_images(tmp_path / "b-0.tar", {"b.png": image_bytes(sample_image(1)), "b.cls": b"0"})
    with pytest.raises(InputError, match=r"^a-0\.tar, b-0\.tar are of 2 splits, as _info\.json next to them says"):
        survey(tmp_path)


def test_a_folder_that_a_system_made_next_to_splits_is_no_class(tmp_path):
    for split in ("train", "val"):
        folder_of_images(tmp_path / split, ("a", "b"), each=2)
    (tmp_path / "lost+found").mkdir()
    found = survey(tmp_path)
    assert (found.train, found.val) == (str(tmp_path / "train"), str(tmp_path / "val"))


def test_a_class_that_is_called_train_next_to_others_is_a_class(tmp_path):
    folder_of_images(tmp_path / "x", classes=("bus", "plane", "train"))
    assert survey(tmp_path / "x").classes == ("bus", "plane", "train")


def test_files_that_hold_images_are_found_by_split(tmp_path):
    images = [image_bytes(sample_image(i)) for i in range(4)]
    for name in ("train-0", "train-1", "val-0"):
        parquet_of_images(tmp_path / f"{name}.parquet", images, [0, 1, 0, 1], keys=[f"{name}{i}" for i in range(4)])
    found = survey(tmp_path)
    assert (found.source, found.train, found.val) == (
        "parquet", f"{tmp_path}/train*.parquet", f"{tmp_path}/val*.parquet"
    )  # fmt: skip
    assert (found.count, found.val_count, found.images) == (8, 4, (4, 4))


@pytest.mark.parametrize("label", [-1, 2**31 - 1])
def test_labels_that_count_no_classes_are_named(tmp_path, label):
    parquet_of_images(tmp_path / "train.parquet", [image_bytes(sample_image(0))] * 2, [0, label], keys=["a", "b"])
    with pytest.raises(InputError, match=f"has the label {label}; labels count the classes from 0"):
        survey(tmp_path)


@pytest.mark.parametrize("names", [("train", "val"), ("a", "b")])
def test_files_are_found_in_a_folder_whose_name_looks_like_a_pattern(tmp_path, names):
    folder = tmp_path / "photos [2020]*"
    folder.mkdir()
    for name in names:
        keys = [f"{name}{i}" for i in range(2)]
        parquet_of_images(folder / f"{name}.parquet", [image_bytes(sample_image(0))] * 2, [0, 1], keys=keys)
    found = survey(folder)
    assert found.count + found.val_count == 4


@pytest.mark.parametrize("other", ["b.PARQUET", "more/b.tar", "b.tar.gz", "b.pq"])
def test_stored_images_that_would_be_left_out_are_named(tmp_path, other):
    images = [image_bytes(sample_image(i)) for i in range(4)]
    parquet_of_images(tmp_path / "a.parquet", images, [0, 1, 0, 1])
    (tmp_path / other).parent.mkdir(exist_ok=True)
    (tmp_path / other).write_bytes(b"x")
    with pytest.raises(
        InputError, match=rf"holds 1 \.parquet files and next to them {other}, whose images would be left"
    ):
        survey(tmp_path)


def test_an_archive_next_to_class_folders_is_no_storage(tmp_path):
    folder_of_images(tmp_path / "x")
    (tmp_path / "x" / "all.tar.gz").write_bytes(b"x")
    assert survey(tmp_path / "x").source == "folder"


def test_tars_without_held_out_ones_are_all_for_training(tmp_path):
    members = {f"{i}.png": image_bytes(sample_image(i)) for i in range(3)} | {f"{i}.cls": b"0" for i in range(3)}
    tar_of_images(tmp_path / "photos-0.tar", members)
    assert splits_of(tmp_path) == ("webdataset", f"{tmp_path}/*.tar", None, ())


def test_a_split_that_goes_unused_is_said(tmp_path):
    for split in ("train", "valid", "test"):
        folder_of_images(tmp_path / "x" / split, each=1)
    found = survey(tmp_path / "x")
    assert (found.val, found.unused) == (str(tmp_path / "x/valid"), ("test",))
    assert "not used: test; valid is held out" in "\n".join(looked(found))


def test_a_split_of_files_that_goes_unused_is_known(tmp_path):
    for name in ("train-0", "validation-0", "validation-1", "test-0"):
        (tmp_path / f"{name}.parquet").touch()
    assert splits_of(tmp_path)[2:] == (f"{tmp_path}/val*.parquet", ("test",))


def test_held_out_files_without_others_are_not_also_trained_on(tmp_path):
    for name in ("photos-0", "test-0"):
        (tmp_path / f"{name}.parquet").touch()
    assert splits_of(tmp_path) == ("parquet", f"{tmp_path}/*.parquet", None, ())


@pytest.mark.parametrize(
    "places", [("a.parquet", "b/b.parquet"), ("a/a.parquet", "b/c/b.parquet"), ("snapshots/1f/data/train-0.parquet",)]
)
def test_files_at_any_depth_are_all_taken(tmp_path, places):
    for place in places:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        parquet_of_images(tmp_path / place, [image_bytes(sample_image(i)) for i in range(2)], [0, 1])
    found = survey(tmp_path)
    assert (found.train, found.count) == (f"{tmp_path}/**/*.parquet", 2 * len(places))


@pytest.mark.parametrize(
    ("places", "unused"),
    [
        (("train-0", "test-0", "extra-0", "unlabelled"), ("extra-0.parquet", "unlabelled.parquet")),
        (("data/train-0", "data/test-0", "train-0", "more/a"), ("more/a.parquet", "train")),
    ],
)
def test_files_that_go_unused_are_said(tmp_path, places, unused):
    for place in places:
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / f"{place}.parquet").touch()
    assert sorted(splits_of(tmp_path)[3]) == sorted(unused)


def test_one_of_two_folders_that_differ_by_case_is_said_to_go_unused(tmp_path):
    for name in ("Train", "train", "val"):
        (tmp_path / name).mkdir()
    if len(list(tmp_path.iterdir())) < 3:
        pytest.skip("this file system does not tell names apart by case")
    assert splits_of(tmp_path) == ("folder", str(tmp_path / "Train"), str(tmp_path / "val"), ("train",))


def test_folders_within_those_of_classes_are_said_to_be_none(tmp_path):
    folder_of_images(tmp_path / "x" / "flowers", each=2)
    found = survey(tmp_path / "x")
    assert (found.classes, found.below) == (("flowers",), 6)
    assert "6 lie in folders within these, which count as no classes" in "\n".join(looked(found))
    assert survey(tmp_path / "x" / "flowers").below == 0


@pytest.mark.parametrize(
    "paths",
    [
        ("Training/ant/0.png", "Testing/ant/0.png"),
        ("train_images/0.png", "test_images/0.png"),
        ("images-train/0.png", "images-test/0.png", "masks/0.png"),
        ("train2017/0.png", "val2017/0.png", "annotations/0.json"),
        ("train/cat.0.png", "test1/0.png"),
        ("train/ant/0.png", "test/ant/0.png", "masks/0.png"),
        ("images/train/ant/0.png", "images/val/ant/0.png"),
        ("ant/train/0.png", "ant/test/0.png"),
        ("training_set/ant/0.png", "test_set/ant/0.png"),
        ("Train-0.parquet", "Test-0.parquet"),
        ("cifar_train.parquet", "cifar_test.parquet"),
        ("default/train/0.parquet", "default/test/0.parquet"),
        ("Train/0.tar", "eval/0.tar"),
    ],
)
def test_splits_in_an_unknown_layout_are_not_trained_on_together(tmp_path, paths):
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    with pytest.raises(InputError, match="look like training and held-out images, in a layout that is not known"):
        splits_of(tmp_path)


@pytest.mark.parametrize(
    "names", [("train station", "test tube"), ("training", "running"), ("test", "other"), ("train set", "other set")]
)
def test_classes_whose_names_look_like_those_of_splits_are_classes(tmp_path, names):
    for name in names:
        (tmp_path / name).mkdir()
    assert splits_of(tmp_path) == ("folder", str(tmp_path), None, ())


def test_what_holds_no_images_is_refused_with_the_next_step(tmp_path):
    with pytest.raises(InputError, match="is no folder"):
        survey(tmp_path / "none")
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError, match=r"foto.* is no folder; did you mean photos\?"):
        survey(tmp_path / "fotos")
    (tmp_path / "photos" / "a.png").write_bytes(image_bytes(sample_image(0)))
    with pytest.raises(InputError, match=r"no sub-folders: one per class .* put them into a sub-folder"):
        survey(tmp_path / "photos")
    folder = folder_of_images(tmp_path / "broken", each=1)
    for path in folder.rglob("*.png"):
        path.write_bytes(b"x")
    with pytest.raises(InputError, match=r"no image of .* can be read: ant/0\.png"):
        survey(folder)
