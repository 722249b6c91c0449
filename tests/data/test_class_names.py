"""Held-out classes are numbered as the training images' are, by name."""

import numpy as np
import pytest

from dpar.data.class_names import numbered_as
from dpar.data.images import ImageIndex, open_images
from dpar.data.sources import FolderImages
from dpar.errors import InputError
from tests.data.samples import folder_of_images


def held_out(labels, classes):
    """Images with such labels and names of classes."""
    return FolderImages("val", ["val"], [f"k{i}" for i in range(len(labels))], np.array(labels), {}, classes=classes)


@pytest.mark.parametrize(
    ("classes", "labels", "known", "expected"),
    [
        (["b", "c", "d"], [0, 1, 1, 2], ["a", "b", "c", "d"], [1, 2, 2, 3]),
        (["a", "b"], [0, 1], ["b", "a"], [1, 0]),
        (["a", "b"], [1, 0], ["a", "b"], [1, 0]),
        ([None, "b", "?"], [1], ["b", "c"], [0]),
        (["a", "a", "b"], [0, 1, 2], ["a", "a", "b"], [0, 1, 2]),  # not unique, but nothing has to be found
        (None, [0, 3], ["a", "b", "c", "d"], [0, 3]),
        (["b", "c"], [0, 1], None, [0, 1]),
    ],
)
def test_classes_take_the_numbers_of_their_names(classes, labels, known, expected):
    found = numbered_as(held_out(labels, classes), known)
    assert found.labels.tolist() == expected
    assert found.classes == (known if classes and known else classes)
    assert found.labels.dtype == np.int32


@pytest.mark.parametrize(
    ("classes", "labels", "known", "message"),
    [
        (["b", "e"], [0, 1], ["a", "b"], r"1 classes that the training images lack: e; .* have a, b, these have b, e;"),
        (["a", "B"], [0, 1], ["a", "b"], r"lack: B \(names that differ by case are different: B is not b\)"),
        (
            [str(i) for i in range(12)],
            range(12),
            [f"n{i:08d}" for i in range(12)],
            r"12 classes .* lack: 0, 1, .*12 in",
        ),
        (["a", "a"], [0, 1], ["b", "a"], "class name a stands more than once"),
        (["b", "a"], [0, 1], ["a", "a"], "class name a stands more than once"),
        (["a", None], [0, 1], ["a", "b"], "label 1 of val has no name among a"),
        (["a"], [0, 1], ["a", "b"], "label 1 of val has no name among a"),
        (["a"], [-1], ["a", "b"], "label -1 of val has no name"),
        (["a\x1b[31m"], [0], ["b"], r"lack: a\\x1b\[31m"),
    ],
)
def test_what_names_cannot_say_is_refused(classes, labels, known, message):
    with pytest.raises(InputError, match=message):
        numbered_as(held_out(list(labels), classes), known)


def test_labels_keep_to_their_images(tmp_path):
    folder_of_images(tmp_path / "train", ("a", "b", "c", "d"), each=1)
    folder_of_images(tmp_path / "val", ("b", "c", "d"), each=2)
    training = ImageIndex.build(open_images("folder", str(tmp_path / "train")), resolution=8, num_classes=4)
    found = numbered_as(open_images("folder", str(tmp_path / "val")), training.images.classes)
    index = ImageIndex.build(found, resolution=8, num_classes=4, every_class=False)
    index.save(tmp_path / "i.json")
    loaded = ImageIndex.load(tmp_path / "i.json")
    assert loaded.class_counts.tolist() == [0, 2, 2, 2]
    for key, label in zip(loaded.keys, loaded.labels, strict=True):
        assert loaded.images.classes[label] == key[0]


def test_names_that_look_the_same_are_told_apart_in_the_refusal():
    with pytest.raises(InputError, match="Unicode") as refusal:
        numbered_as(held_out([0], ["caf\u00e9"]), ["cafe\u0301"])
    assert r"'caf\xe9' is not 'cafe\u0301'" in str(refusal.value)
    with pytest.raises(InputError, match="names that differ by case are different: a is not A"):
        numbered_as(held_out([0], ["a"]), ["A"])


@pytest.mark.parametrize(("classes", "known", "said"), [(["a"], None, True), (None, ["a"], True), (None, None, False)])
def test_labels_that_are_compared_as_numbers_though_one_split_has_names_are_said(classes, known, said, capsys):
    numbered_as(held_out([0], classes), known)
    assert ("labels are compared as numbers" in capsys.readouterr().err) == said
