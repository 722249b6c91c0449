"""Images that are held out by a rule."""

import hashlib

import numpy as np
import pytest

from dpar.data.images import open_images
from dpar.data.subsets import held_out
from tests.data.samples import folder_of_images


def test_of_each_class_those_with_the_smallest_digests_are_held_out(tmp_path):
    images = open_images("folder", str(folder_of_images(tmp_path / "x", each=10)))
    taken = held_out(images, 0.3)
    assert np.bincount(images.labels[taken]).tolist() == [3, 3, 3]
    digests = [hashlib.sha256(key.encode()).hexdigest() for key in images.keys]
    for label in range(3):
        of_class = np.flatnonzero(images.labels == label)
        assert max(digests[i] for i in of_class if taken[i]) < min(digests[i] for i in of_class if not taken[i])


@pytest.mark.parametrize(("each", "share", "expected"), [(1, 0.5, 0), (2, 0.01, 1), (2, 0.99, 1), (10, 0.1, 1)])
def test_a_class_keeps_images_on_both_sides_where_it_has_two(tmp_path, each, share, expected):
    images = open_images("folder", str(folder_of_images(tmp_path / "x", each=each)))
    assert held_out(images, share).sum() == 3 * expected


def test_the_rule_asks_names_alone(tmp_path):
    one = open_images("folder", str(folder_of_images(tmp_path / "one", each=8)))
    images = open_images("folder", str(folder_of_images(tmp_path / "other", each=8)))
    order = np.random.default_rng(0).permutation(len(images))
    shuffled = images.keep(order)
    names = {key for key, taken in zip(one.keys, held_out(one, 0.25), strict=True) if taken}
    assert names == {key for key, taken in zip(shuffled.keys, held_out(shuffled, 0.25), strict=True) if taken}
