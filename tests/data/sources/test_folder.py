"""Folders of images: what is taken, counted and refused."""

import json
import os

import pytest

from dpar.data.class_names import numbered_as
from dpar.data.images import ImageIndex, open_images
from dpar.data.sources import folder
from dpar.errors import InputError
from tests.data.samples import folder_of_images, image_bytes, sample_image


def test_classes_are_sorted_and_other_files_left_alone(tmp_path):
    folder_of_images(tmp_path / "x", ("b", "a", "c"), each=1)
    (tmp_path / "x/.git").mkdir()
    (tmp_path / "x/README.md").write_text("about")
    (tmp_path / "x/a/notes.txt").write_text("about")
    (tmp_path / "x/a/.0.png").write_bytes(b"of another system")
    (tmp_path / "x/a/deep/er").mkdir(parents=True)
    (tmp_path / "x/a/deep/er/9.JPEG").write_bytes(image_bytes(sample_image(9), "JPEG"))
    source = open_images("folder", str(tmp_path / "x"))
    assert source.keys == ["a/0.png", "a/deep/er/9.JPEG", "b/0.png", "c/0.png"]
    assert source.labels.tolist() == [0, 0, 1, 2]


def test_missing_empty_and_classless_folders(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        open_images("folder", str(tmp_path / "none"))
    with pytest.raises(InputError, match="no sub-folders"):
        open_images("folder", str(tmp_path))
    folder_of_images(tmp_path / "x")
    (tmp_path / "x/dog").mkdir()
    with pytest.raises(InputError, match=r"class folder .*x/dog holds no images"):
        open_images("folder", str(tmp_path / "x"))


def test_what_is_no_image_is_counted_by_its_suffix_and_hidden_names_are_not(tmp_path):
    root = folder_of_images(tmp_path / "x", ("a", "b"), each=1)
    for name in ("README.md", "a/1.txt", "a/2.TXT", "b/deep.tar.gz", "b/.hidden.txt", "b/notes"):
        (root / name).write_text("about")
    for name in ("a/photo", "b/scan"):
        (root / name).write_bytes(image_bytes(sample_image(7)))
    source = open_images("folder", str(root))
    assert source.keys == ["a/0.png", "b/0.png"]
    assert source.left_alone == {
        ".txt": 2, "images without a suffix (a/photo, b/scan)": 2, ".md": 1, ".gz": 1, "without a suffix": 1
    }  # fmt: skip


@pytest.mark.parametrize("made", ["@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found", "__MACOSX"])
def test_thumbnails_and_deleted_images_are_neither_a_class_nor_in_one(tmp_path, made):
    root = folder_of_images(tmp_path / "x", ("a", "b"), each=1)
    folder_of_images(root, (made,), each=1)
    folder_of_images(root / "a", (made,), each=1)
    source = open_images("folder", str(root))
    assert (source.keys, source.classes) == (["a/0.png", "b/0.png"], ["a", "b"])


def test_many_kinds_of_other_files_are_told_in_few_words(tmp_path):
    root = folder_of_images(tmp_path / "x", ("a",), each=1)
    for i in range(100):
        (root / f"a/{i}.kind{i}").write_text("")
    left_alone = open_images("folder", str(root)).left_alone
    assert len(left_alone) < 30
    assert sum(left_alone.values()) == 100


@pytest.mark.parametrize("suffix", [".jfif", ".JPE", ".jpeg"])
def test_every_suffix_of_an_image_is_taken(tmp_path, suffix):
    root = folder_of_images(tmp_path / "x", ("a",), each=1)
    (root / f"a/1{suffix}").write_bytes(image_bytes(sample_image(1), "JPEG"))
    assert open_images("folder", str(root)).keys == ["a/0.png", f"a/1{suffix}"]


def test_a_link_to_a_folder_above_it_is_named_and_not_followed(tmp_path):
    root = folder_of_images(tmp_path / "x", ("a", "b"), each=2)
    (root / "a/sub").mkdir()
    (root / "a/itself").symlink_to(root / "a")
    (root / "a/sub/up").symlink_to("../..")
    (root / "b/round").symlink_to("round")
    source = open_images("folder", str(root))
    assert source.keys == ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]
    assert source.left_alone == {"links to a folder above them (a/sub/up, a/itself)": 2, "without a suffix": 1}


def test_a_folder_that_is_reached_in_two_ways_is_read_once_or_refused(tmp_path):
    root = folder_of_images(tmp_path / "x", ("a", "b"), each=1)
    (root / "a/v1").mkdir()
    (root / "a/v1/9.png").write_bytes(image_bytes(sample_image(9)))
    (root / "a/latest").symlink_to("v1")
    source = open_images("folder", str(root))
    assert len(source) == 3
    assert list(source.left_alone.values()) == [1]
    (root / "b/also").symlink_to(root / "a/v1")
    with pytest.raises(InputError, match="one folder, so that its images would belong to two classes"):
        open_images("folder", str(root))


def test_class_folders_may_be_links(tmp_path):
    folder_of_images(tmp_path / "real", ("a", "b"), each=1)
    (tmp_path / "x").mkdir()
    for name in "ab":
        (tmp_path / "x" / name).symlink_to(tmp_path / "real" / name)
    assert open_images("folder", str(tmp_path / "x")).keys == ["a/0.png", "b/0.png"]


def test_images_beside_class_folders_are_refused_with_the_counts(tmp_path):
    root = folder_of_images(tmp_path / "x")
    for i in range(12):
        (root / f"loose{i:02d}.png").write_bytes(image_bytes(sample_image(i)))
    with pytest.raises(InputError, match=r"12 images next to its 3 folders: loose00\.png, .* \(12 in all\)"):
        open_images("folder", str(root))


def test_names_that_are_no_text_are_usable_and_printed_safely(tmp_path):
    root = folder_of_images(tmp_path / "x", ("a", "b"), each=1)
    odd = b"caf\xe9 \x1b[31m\n.png"
    (tmp_path / "x/a" / os.fsdecode(odd)).write_bytes(image_bytes(sample_image(8)))
    os.rename(root / "b", os.path.join(os.fsencode(root), b"b\xff"))
    index = ImageIndex.build(open_images("folder", str(root)), resolution=8, num_classes=2)
    index.save(tmp_path / "i.json")
    json.loads((tmp_path / "i.json").read_bytes().decode("ascii"))
    loaded = ImageIndex.load(tmp_path / "i.json")
    assert [os.fsencode(key) for key in loaded.keys] == [b"a/0.png", b"a/" + odd, b"b\xff/0.png"]
    assert [os.fsencode(name) for name in loaded.images.classes] == [b"a", b"b\xff"]
    assert loaded.read(1).size == (20, 16)
    (tmp_path / "x/a" / os.fsdecode(odd)).write_bytes(b"other")
    with pytest.raises(InputError) as caught:
        loaded.read(1)
    assert str(caught.value).isprintable()
    assert r"a/caf\udce9 \x1b[31m\n.png" in str(caught.value)
    with pytest.raises(InputError) as caught:
        ImageIndex.build(open_images("folder", str(root)), resolution=8, num_classes=2)
    assert str(caught.value).isprintable()


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    folder_of_images(tmp_path / "x")
    (tmp_path / "x/bee/deep").mkdir()
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(folder.os, "scandir", refusing)
    with pytest.raises(InputError, match=r"x/bee/deep cannot be read \(Permission denied\)"):
        open_images("folder", str(tmp_path / "x"))


def test_pipes_are_refused_and_links_that_lead_nowhere_are_unreadable_images(tmp_path):
    root = folder_of_images(tmp_path / "x", ("a",), each=1)
    (root / "a/gone.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"1 of 2 images .* cannot be read: a/gone\.png"):
        ImageIndex.build(open_images("folder", str(root)), resolution=8, num_classes=1)
    os.mkfifo(root / "a/pipe.png")
    with pytest.raises(InputError, match=r"a/pipe\.png is no file"):
        open_images("folder", str(root))


def test_an_empty_class_folder_says_what_it_holds_instead(tmp_path):
    root = folder_of_images(tmp_path / "x")
    (root / "dog").mkdir()
    (root / "dog/1.heic").write_text("")
    with pytest.raises(InputError, match=r"x/dog holds no images .*; left alone: 1 \.heic$"):
        open_images("folder", str(root))


def test_held_out_images_may_have_an_empty_class_folder(tmp_path):
    root = folder_of_images(tmp_path / "val")
    for name in ("bat", "unknown"):
        (root / name).mkdir()
    found = numbered_as(open_images("folder", str(root), every_class=False), ["ant", "bat", "bee", "cat"])
    index = ImageIndex.build(found, resolution=8, num_classes=4, every_class=False)
    assert index.class_counts.tolist() == [3, 0, 3, 3]
    folder_of_images(tmp_path / "none", each=0)
    with pytest.raises(InputError, match="holds no images"):
        open_images("folder", str(tmp_path / "none"), every_class=False)
