"""The Frechet distance: scipy's square root, closed forms, and what cannot be measured."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpar.errors import InputError
from dpar.evaluation.frechet import Gaussian, Moments, fit_gaussian, frechet_distance
from tests.oracles import metrics as oracle


def draw(count, dims, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dims, dims, generator=generator, dtype=torch.float64)
    return (torch.randn(count, dims, generator=generator, dtype=torch.float64) @ mix + seed).to(dtype)


def distance(a, b):
    return frechet_distance(fit_gaussian(a), fit_gaussian(b))


@settings(deadline=None, derandomize=True, max_examples=25)
@given(dims=st.integers(2, 12), seed=st.integers(0, 1000))
def test_it_is_the_distance_with_scipys_matrix_square_root(dims, seed):
    a, b = draw(4 * dims, dims, seed), draw(5 * dims, dims, seed + 1)
    assert distance(a, b) == pytest.approx(oracle.frechet_distance(a, b), rel=1e-9)
    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-9)


def test_the_fit_is_numpys_unbiased_covariance_whatever_the_block(monkeypatch):
    x = draw(1000, 7)
    monkeypatch.setattr("dpar.evaluation.frechet.BLOCK", 37)
    found = fit_gaussian(x)
    torch.testing.assert_close(found.mean, x.mean(0))
    torch.testing.assert_close(found.covariance, x.T.cov())
    assert found.count == 1000


def test_float32_features_are_summed_in_float64():
    x = draw(5000, 4, dtype=torch.float32) + 1000
    torch.testing.assert_close(fit_gaussian(x).covariance, x.double().T.cov(), rtol=1e-9, atol=1e-9)


def test_moments_of_passing_batches_are_those_of_all_together():
    x = draw(1000, 7) + 1e6  # a large mean, which would cost a plain sum of squares its digits
    moments = Moments()
    for batch in x.split([1, 499, 500]):
        moments.add(batch)
    found, expected = moments.gaussian(), fit_gaussian(x)
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.covariance, expected.covariance)
    assert found.count == 1000


def test_moments_of_too_few_and_of_broken_features_are_refused():
    moments = Moments()
    with pytest.raises(InputError, match="0 samples are too few"):
        moments.gaussian()
    moments.add(draw(4, 4))
    with pytest.raises(InputError, match="4 samples are too few for features of 4 dimensions"):
        moments.gaussian()
    moments.add(torch.full((1, 4), torch.nan))
    with pytest.raises(InputError, match="NaN, infinity"):
        moments.gaussian()


def test_a_set_is_at_no_distance_from_itself_nor_from_its_rows_in_another_order():
    x = draw(200, 8)
    assert distance(x, x) == pytest.approx(0, abs=1e-9)
    assert distance(x, x.flip(0)) == pytest.approx(0, abs=1e-9)


def test_a_shift_c_is_at_distance_c_squared():
    x, c = draw(200, 8), torch.arange(8.0, dtype=torch.float64)
    assert distance(x, x + c) == pytest.approx(c.square().sum().item(), rel=1e-9)


def test_scaling_both_by_a_scales_the_distance_by_a_squared_and_a_rotation_leaves_it():
    a, b = draw(200, 6), draw(300, 6, 1)
    assert distance(3 * a, 3 * b) == pytest.approx(9 * distance(a, b), rel=1e-9)
    rotation = torch.linalg.qr(draw(6, 6, 2))[0]
    assert distance(a @ rotation, b @ rotation) == pytest.approx(distance(a, b), rel=1e-9)


def test_diagonal_gaussians_have_the_closed_form():
    s, t = torch.tensor([1.0, 4.0, 9.0]).double(), torch.tensor([4.0, 4.0, 1.0]).double()
    a = Gaussian(torch.zeros(3).double(), s.diag(), 100)
    b = Gaussian(torch.tensor([1.0, 0.0, 2.0]).double(), t.diag(), 100)
    assert frechet_distance(a, b) == pytest.approx(5 + (s.sqrt() - t.sqrt()).square().sum().item(), rel=1e-12)


def test_a_singular_covariance_that_was_stored_still_has_a_real_distance():
    flat = Gaussian(torch.zeros(4).double(), torch.ones(4, 4).double(), 100)
    assert frechet_distance(flat, flat) == pytest.approx(0, abs=1e-6)


def test_too_few_samples_other_dimensions_and_nan_are_refused():
    with pytest.raises(InputError, match=r"8 samples are too few for features of 8 dimensions.*at least 80"):
        fit_gaussian(draw(8, 8))
    with pytest.raises(InputError, match="of 3 and of 4 dimensions"):
        distance(draw(50, 3), draw(50, 4))
    bad = draw(50, 3)
    bad[7, 1] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        fit_gaussian(bad)
    with pytest.raises(InputError, match="too large to square"):
        fit_gaussian(1e200 * draw(50, 3).double())
