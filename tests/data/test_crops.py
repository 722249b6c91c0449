"""Crops and the scale of pixels."""

import numpy as np
import pytest
import torch
from PIL import Image

from dpar.data.crops import center_crop, to_model_input, to_uint8, views
from tests.data.samples import sample_image
from tests.oracles.data import adm_center_crop, ten_crop


@pytest.mark.parametrize("size", [(50, 37), (37, 50), (16, 16), (9, 30), (200, 67), (131, 131), (8, 8)])
@pytest.mark.parametrize("side", [8, 16, 17])
def test_center_crop_is_adms(size, side):
    image = sample_image(1, *size)
    found = center_crop(image, side)
    assert found.size == (side, side)
    assert np.array_equal(np.array(found), np.array(adm_center_crop(image, side)))


@pytest.mark.parametrize(
    ("resolution", "crop_range", "side"),
    [(256, 1.1, 281), (256, 1.05, 268), (384, 1.1, 422), (384, 1.05, 403), (64, 1.1, 70), (7, 1.15, 8), (8, 1.0, 8)],
)
def test_ten_crop_is_the_literal_one_at_the_papers_sizes(resolution, crop_range, side):
    image = sample_image(2, side + 40, side + 9)
    expected = ten_crop(adm_center_crop(image, side), resolution)
    found = views(image, resolution, (crop_range,), ten_crop=True)
    assert found.dtype == torch.uint8
    assert found.shape == (10, 3, resolution, resolution)
    for a, b in zip(found, expected, strict=True):
        assert np.array_equal(a.permute(1, 2, 0).numpy(), np.array(b))


def test_views_follow_the_ranges_in_order():
    image = sample_image(3, 40, 40)
    found = views(image, 16, (1.1, 1.3), ten_crop=True)
    assert found.shape[0] == 20
    for i, crop_range in enumerate((1.1, 1.3)):
        assert torch.equal(found[10 * i : 10 * i + 10], views(image, 16, (crop_range,), ten_crop=True))


def test_without_ten_crop_there_are_the_centre_and_its_mirror_image():
    image = sample_image(4, 40, 30)
    two, ten = (views(image, 16, (1.25,), ten_crop=choice) for choice in (False, True))
    assert torch.equal(two, ten[[4, 9]])
    assert torch.equal(two[1], two[0].flip(-1))


def test_model_input_spans_minus_one_to_one():
    pixels = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    found = to_model_input(pixels)
    assert found.dtype == torch.float32
    assert found.min() == -1
    assert found.max() == 1
    torch.testing.assert_close(found[0, 0], torch.linspace(-1, 1, 256))


def test_pixels_keep_their_places():
    array = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert np.array_equal(to_uint8(Image.fromarray(array)).permute(1, 2, 0).numpy(), array)
