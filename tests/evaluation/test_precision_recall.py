"""Precision and recall: every distance in float64, ties, far and collapsed sets, tiles and bad numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpar.errors import InputError
from dpar.evaluation.precision_recall import precision_recall
from tests.oracles import metrics as oracle


def draw(count, dims, seed=0, scale=1.0, shift=0.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(count, dims, generator=generator, dtype=torch.float64) + shift).to(dtype)


def check(samples, reference, k=3):
    found = precision_recall(samples, reference, k)
    assert (found.precision, found.recall) == oracle.precision_recall(samples, reference, k)
    return found


@settings(deadline=None, derandomize=True, max_examples=25)
@given(n=st.integers(8, 60), m=st.integers(8, 60), dims=st.integers(1, 6), k=st.integers(1, 7), tile=st.integers(3, 70))
def test_it_is_the_float64_result_whatever_the_tile(n, m, dims, k, tile):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dpar.evaluation.precision_recall.TILE", tile)
        check(draw(n, dims), draw(m, dims, 1, 1.3, 0.5), k)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(n=st.integers(5, 60), m=st.integers(5, 60), dims=st.integers(1, 3), seed=st.integers(0, 99))
def test_ties_and_duplicates_count_as_inside(n, m, dims, seed):
    generator = torch.Generator().manual_seed(seed)
    lattice = torch.randint(0, 9, (n, dims), generator=generator).float()
    check(lattice, torch.randint(4, 14, (m, dims), generator=generator).float())
    check(lattice, lattice[: max(5, n // 2)])


@pytest.mark.parametrize(("scale", "shift"), [(1e-12, 0), (1e15, 0), (1.0, 1e4), (1e-3, 10.0)])
def test_neither_scale_nor_a_common_shift_costs_accuracy(scale, shift):
    samples, reference = draw(80, 4, 0, scale, shift), draw(70, 4, 1, 1.3 * scale, shift)
    found = check(samples, reference)
    assert 0.5 < found.precision < 1


def test_float64_features_closer_than_float32_can_tell_are_told_apart():
    samples, reference = draw(60, 3, 0, 1e-9, 1.0, torch.float64), draw(60, 3, 1, 1.2e-9, 1.0, torch.float64)
    assert 0 < check(samples, reference).recall < 1


def test_neighbours_nearer_than_float32_can_tell_are_found_all_the_same():
    centres = draw(4, 16, 5, 100.0).repeat(60, 1)
    samples, reference = centres + draw(240, 16, 0, 1e-3), centres + draw(240, 16, 1, 1e-3)
    found = check(samples, reference)
    assert 0 < found.precision < 1
    assert 0 < found.recall < 1


@pytest.mark.parametrize(("reach", "share"), [(1 - 1e-10, 1.0), (1.0, 1.0), (1 + 1e-10, 0.0)])
def test_a_ball_ends_where_float64_says(reach, share):
    left = 64.0 * torch.arange(100, dtype=torch.float64)[:, None]
    pairs = torch.cat([left, left + 1])  # the ball of either reaches to the other
    assert precision_recall(left - reach, pairs, 1).precision == share


def test_a_set_with_itself_is_one_one_and_far_sets_are_nothing():
    x = draw(100, 8)
    assert check(x, x) == check(x, x.flip(0))
    assert (check(x, x).precision, check(x, x).recall) == (1, 1)
    assert (check(x, x + 100).precision, check(x, x + 100).recall) == (0, 0)


def test_collapse_onto_one_mode_keeps_precision_and_loses_recall():
    reference = torch.cat([draw(60, 4), draw(60, 4, 1, shift=50.0)])
    one_mode = check(draw(100, 4, 2, 0.5), reference)
    assert one_mode.precision > 0.95
    assert one_mode.recall < 0.5
    copies = check(reference[:1].expand(50, 4), reference)
    assert (copies.precision, copies.recall) == (1, pytest.approx(1 / 120))


def test_noise_around_everything_loses_precision_and_keeps_recall():
    found = check(draw(150, 2, 0, 8.0), draw(100, 2, 1))
    assert found.precision < 0.5 < found.recall


def test_all_points_in_one_place_are_inside():
    assert precision_recall(torch.ones(300, 8), torch.ones(200, 8)).recall == 1


@pytest.mark.gpu
def test_a_gpu_finds_what_the_cpu_finds():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    samples, reference = draw(3000, 512), draw(2000, 512, 1, 1.02)
    assert precision_recall(samples.cuda(), reference.cuda()) == precision_recall(samples, reference)


def test_too_few_images_and_nan_are_refused():
    with pytest.raises(InputError, match="more than k = 3 images, found 9, 3"):
        precision_recall(draw(9, 3), draw(3, 3))
    with pytest.raises(InputError, match="NaN"):
        precision_recall(draw(9, 3), draw(9, 3) * float("inf"))
