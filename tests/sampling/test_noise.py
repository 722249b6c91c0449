"""The noise is SplitMix64, belongs to (seed, position, code) alone, and is Gumbel."""

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpar.sampling.noise import gumbel, image_seed
from tests.oracles.data import splitmix64


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 600), st.integers(0, 6))
def test_each_number_is_the_literal_one(seed, position, code):
    vocab_size = 7
    noise = gumbel(torch.tensor([seed]), position, position + 1, vocab_size)[0, 0, code].item()
    word = splitmix64(splitmix64(seed) + (position * vocab_size + code + 1) * 0x9E3779B97F4A7C15)
    uniform = ((word >> 12) + 0.5) / 2**52
    assert 0 < uniform < 1
    assert math.isclose(noise, -math.log(-math.log(uniform)), rel_tol=1e-12, abs_tol=1e-12)


def test_noise_of_an_image_does_not_depend_on_its_company_or_on_the_pieces():
    seeds = torch.tensor([5, -3, 2**62])
    whole = gumbel(seeds, 0, 12, 9)
    alone = torch.cat([gumbel(seeds[i : i + 1], 0, 12, 9) for i in range(3)])
    pieces = torch.cat([gumbel(seeds, start, start + 4, 9) for start in (0, 4, 8)], dim=1)
    assert torch.equal(whole, alone)
    assert torch.equal(whole, pieces)


def test_noise_is_gumbel_and_uncorrelated():
    noise = gumbel(torch.arange(8), 0, 64, 256).numpy()
    assert abs(noise.mean() - np.euler_gamma) < 0.01
    assert abs(noise.var() - math.pi**2 / 6) < 0.03
    rows = noise.reshape(8, -1)
    assert np.abs(np.corrcoef(rows) - np.eye(8)).max() < 0.04
    assert abs(np.corrcoef(rows[0, :-1], rows[0, 1:])[0, 1]) < 0.04


def test_seeds_of_images_differ_and_stay():
    seeds = {image_seed(seed, image) for seed in range(4) for image in range(500)}
    assert len(seeds) == 2000
    assert image_seed(0, 0) == image_seed(0, 0)
    assert all(-(2**63) <= seed < 2**63 for seed in seeds)
