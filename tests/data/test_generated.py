"""The originals that the package draws."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from dpar.data.generated import CLASSES, draw


def blocks(image, side):
    """Standard deviation of brightness in each block."""
    grey = image.mean(-1)
    n = len(grey) // side
    return grey[: n * side, : n * side].reshape(n, side, n, side).std(axis=(1, 3))


@pytest.mark.parametrize("label", range(len(CLASSES)))
@pytest.mark.parametrize("resolution", [64, 97, 128])
def test_every_class_at_any_resolution(label, resolution):
    found = draw(label, 3, 0, resolution)
    assert found.shape == (resolution, resolution, 3)
    assert found.dtype == np.uint8
    assert found.std() > 20


def test_a_picture_depends_on_its_label_index_and_seed_only():
    first = draw(2, 5, 7, 64)
    draw(1, 1, 1, 64)
    assert np.array_equal(draw(2, 5, 7, 64), first)
    for other in ((3, 5, 7), (2, 6, 7), (2, 5, 8)):
        assert not np.array_equal(draw(*other, 64), first)
    code = "import hashlib; from dpar.data.generated import draw; print(hashlib.sha256(draw(2, 5, 7, 64)).hexdigest())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert found == hashlib.sha256(first).hexdigest()


@pytest.mark.parametrize("label", range(len(CLASSES)))
def test_every_picture_has_flat_and_busy_regions(label):
    for index in range(30):
        spread = blocks(draw(label, index, 0, 64), 8)
        assert (spread < 4).mean() > 0.1
        assert (spread > 8).mean() > 0.1


def test_classes_can_be_told_apart():
    def features(index):
        return np.stack([draw(c, index, 0, 64).reshape(8, 8, 8, 8, 3).mean((1, 3)).ravel() for c in range(8)])

    centres = np.mean([features(index) for index in range(40)], axis=0)
    guesses = [
        np.argmin(((features(index)[:, None] - centres) ** 2).sum(-1), axis=1) == np.arange(8)
        for index in range(40, 80)
    ]
    assert np.mean(guesses) > 0.97
