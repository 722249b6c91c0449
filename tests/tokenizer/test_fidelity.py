import math

import numpy as np
import pytest
import torch

from dpar.tokenizer.fidelity import codebook_use, perplexity, psnr, ssim
from tests.oracles import tokenizer as oracle


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    smooth = np.add.outer(np.linspace(0, 200, 16), np.linspace(0, 50, 14))
    a = np.clip(smooth + rng.normal(0, 20, (2, 3, 16, 14)), 0, 255).astype(np.uint8)
    return a, np.clip(a + rng.normal(0, [[[[5]]], [[[40]]]], a.shape), 0, 255).astype(np.uint8)


def test_psnr_is_that_of_the_definition(images):
    a, b = images
    found = psnr(torch.from_numpy(a), torch.from_numpy(b))
    for i in range(2):
        mse = np.mean((a[i].astype(float) - b[i].astype(float)) ** 2)
        assert found[i].item() == pytest.approx(10 * math.log10(255**2 / mse), rel=1e-6)


def test_equal_pictures_have_a_finite_psnr_and_an_ssim_of_one(images):
    a = torch.from_numpy(images[0])
    assert psnr(a, a).tolist() == pytest.approx([100, 100])
    assert ssim(a, a).tolist() == [1, 1]


def test_ssim_is_that_of_the_literal_windows(images):
    a, b = images
    found = ssim(torch.from_numpy(a), torch.from_numpy(b))
    for i in range(2):
        expected = np.mean([oracle.ssim(a[i, colour], b[i, colour]) for colour in range(3)])
        assert found[i].item() == pytest.approx(expected, rel=1e-9)
    assert found[0] > found[1]


def test_use_and_perplexity_of_known_counts():
    assert codebook_use(torch.tensor([4, 0, 1, 0])) == 0.5
    assert perplexity(torch.tensor([5, 5, 5, 5])) == pytest.approx(4)
    assert perplexity(torch.tensor([0, 9, 0])) == 1
    assert perplexity(torch.tensor([1, 1, 2])) == pytest.approx(2**1.5)
