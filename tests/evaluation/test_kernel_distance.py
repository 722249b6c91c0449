"""KID: pair by pair, unbiased, and close to its estimate from subsets."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpar.errors import InputError
from dpar.evaluation.kernel_distance import kernel_distance, subset_kernel_distance
from tests.oracles import metrics as oracle


def draw(count, dims, seed=0, shift=0.0):
    return torch.randn(count, dims, generator=torch.Generator().manual_seed(seed)) + shift


@settings(deadline=None, derandomize=True, max_examples=20)
@given(n=st.integers(2, 20), m=st.integers(2, 20), dims=st.integers(1, 8), tile=st.integers(1, 25))
def test_it_is_the_sum_over_pairs_whatever_the_tile(n, m, dims, tile):
    a, b = draw(n, dims), draw(m, dims, 1, 0.3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dpar.evaluation.kernel_distance.TILE", tile)
        assert kernel_distance(a, b) == pytest.approx(oracle.kernel_distance(a, b), rel=1e-9, abs=1e-9)


def test_it_is_zero_on_average_where_both_sides_are_the_same_distribution():
    found = torch.tensor([kernel_distance(draw(30, 4, seed), draw(20, 4, 1000 + seed)) for seed in range(400)])
    assert found.min() < 0 < found.max()
    assert abs(found.mean()) < 4 * found.std() / 20  # four standard errors; a bias would be of order 1 / 20


def test_subsets_estimate_it_without_bias_and_are_it_when_they_are_everything():
    a, b = draw(400, 8), draw(500, 8, 1, 0.5)
    assert subset_kernel_distance(a, b, subsets=200, size=100) == pytest.approx(kernel_distance(a, b), rel=0.05)
    c = b[:400]
    assert subset_kernel_distance(a, c, subsets=2, size=1000) == pytest.approx(kernel_distance(a, c), rel=1e-9)
    assert subset_kernel_distance(a, b, subsets=3, seed=1) != subset_kernel_distance(a, b, subsets=3, seed=2)


def test_a_single_image_and_nan_are_refused():
    with pytest.raises(InputError, match="found 1 and 5"):
        kernel_distance(draw(1, 3), draw(5, 3))
    with pytest.raises(InputError, match="NaN"):
        kernel_distance(draw(5, 3) * float("nan"), draw(5, 3))
