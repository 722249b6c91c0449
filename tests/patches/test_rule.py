import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dpar.errors import InputError
from dpar.evaluation.agreement import Agreement
from dpar.experiment.settings import Patchify
from dpar.patches.calibration import SAMPLE, calibrate, calibrate_cost
from dpar.patches.counts import PatchCounts, simulate
from dpar.patches.rule import CHUNK, PatchRule, patch_ids, patch_starts, static_starts
from tests.oracles import patchify as oracle

hypothesis = settings(deadline=None, derandomize=True)
finite = st.floats(0, 10, width=32)
lengths = st.none() | st.integers(1, 16)


@st.composite
def grids(draw):
    """Entropies (B, T) with many ties, and the width of their grid."""
    images, rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(st.integers(1, 9))
    entropies = finite | st.sampled_from([0.0, 7.8125, math.inf])
    entropy = draw(arrays(np.float32, (images, rows * columns), elements=entropies))
    entropy[:, 0] = math.inf
    return entropy, columns


def literal(entropy: np.ndarray, **rule) -> np.ndarray:
    return np.array([oracle.starts(oracle.patches(row.tolist(), **rule)) for row in entropy])


@hypothesis
@given(grids(), finite, lengths, st.booleans())
def test_starts_are_those_of_algorithm_3(grid, threshold, max_length, row_boundary):
    entropy, width = grid
    rule = {"threshold": threshold, "max_length": max_length, "grid_width": width, "row_boundary": row_boundary}
    expected = literal(entropy, **rule)
    starts = patch_starts(entropy, **rule)
    np.testing.assert_array_equal(starts, expected)
    of_tensor = patch_starts(torch.from_numpy(entropy), **rule)
    assert of_tensor.dtype == torch.bool
    np.testing.assert_array_equal(of_tensor.numpy(), expected)


@hypothesis
@given(grids(), finite, lengths, st.booleans())
def test_one_step_at_a_time_gives_the_same_starts(grid, threshold, max_length, row_boundary):
    entropy, width = torch.from_numpy(grid[0]), grid[1]
    rule = {"threshold": threshold, "max_length": max_length, "grid_width": width, "row_boundary": row_boundary}
    length, steps = torch.zeros(len(entropy), dtype=torch.long), []
    for t in range(entropy.shape[1]):
        steps.append(PatchRule(**rule).opens(entropy[:, t], length, t))
        length = torch.where(steps[-1], 1, length + 1)
    assert torch.equal(torch.stack(steps, dim=1), patch_starts(entropy, **rule))


@hypothesis
@given(grids(), finite, st.integers(1, 12))
def test_patches_keep_what_they_promise(grid, threshold, max_length):
    entropy, width = grid
    starts = torch.from_numpy(patch_starts(entropy, threshold=threshold, max_length=max_length, grid_width=width))
    ids = patch_ids(starts)
    assert starts[:, :2].all()
    assert starts[:, ::width].all()
    assert starts[torch.from_numpy(entropy > threshold)].all()
    for image in ids:
        assert image[0] == 0
        assert set(image.diff().tolist()) <= {0, 1}
        assert image.bincount().max() <= max_length


@hypothesis
@given(grids(), finite, lengths, st.booleans())
def test_patches_follow_from_the_tokens_before(grid, threshold, max_length, row_boundary):
    """Whether x_t opens a patch is decided by e_0 .. e_t, so later entropies change nothing before them."""
    entropy, width = grid
    rule = {"threshold": threshold, "max_length": max_length, "grid_width": width, "row_boundary": row_boundary}
    t = entropy.shape[1] // 2
    changed = entropy.copy()
    changed[:, t:] = 10 - changed[:, t:].clip(0, 10)
    np.testing.assert_array_equal(patch_starts(changed, **rule)[:, :t], patch_starts(entropy, **rule)[:, :t])


def test_each_row_of_table_3_by_hand():
    entropy = np.full((1, 12), 1.0)
    entropy[0, 9] = 9.0

    def starts(**rule):
        return np.flatnonzero(patch_starts(entropy, threshold=7.8, grid_width=6, **rule)[0]).tolist()

    assert starts(max_length=None, row_boundary=False) == [0, 1, 9]
    assert starts(max_length=4, row_boundary=False) == [0, 1, 5, 9]
    assert starts(max_length=4, row_boundary=True) == [0, 1, 5, 6, 9]
    assert static_starts(1, 12, 5.0)[0].nonzero().flatten().tolist() == [0, 5, 10]


def test_an_entropy_equal_to_the_threshold_opens_no_patch():
    entropy = np.full((1, 8), 7.8, np.float32)
    starts = patch_starts(entropy, threshold=7.8, max_length=None, grid_width=8)
    assert starts.sum() == 2
    starts = patch_starts(entropy, threshold=float(np.nextafter(entropy[0, 0], 0)), max_length=None, grid_width=8)
    assert starts.all()


@pytest.mark.parametrize("threshold", [7.8, 0.1, 1e6, -1e6, 2.0**-30, 7.8125, -0.3])
def test_a_threshold_is_not_rounded_to_half_precision(threshold):
    near = np.array(np.clip(threshold, -60_000, 60_000), np.float16)
    values = [near, np.nextafter(near, np.float16(np.inf)), np.nextafter(near, np.float16(-np.inf))]
    entropy = np.array([[9, 9, *values, 0, 65_000, -65_000]], np.float16)
    expected = [True, True, *(float(e) > threshold for e in entropy[0, 2:])]
    rule = {"threshold": threshold, "max_length": None, "grid_width": 8}
    for array in (entropy, entropy.astype(">f2"), torch.from_numpy(entropy)):
        assert patch_starts(array, **rule).tolist() == [expected]
        counts = simulate(array, thresholds=[threshold], max_lengths=[None], grid_width=8)[threshold, None]
        assert counts.mean == sum(expected)


def test_infinite_thresholds():
    entropy = np.random.default_rng(0).uniform(0, 9, (3, 16))
    assert patch_starts(entropy, threshold=-math.inf, max_length=4, grid_width=4).all()
    assert patch_starts(entropy, threshold=math.inf, max_length=None, grid_width=4).sum() == 3 * 5


def test_arrays_that_torch_cannot_share_are_read():
    entropy = np.random.default_rng(0).uniform(0, 9, (5, 16)).astype(np.float32)
    rule = {"threshold": 4.0, "max_length": 3, "grid_width": 4}
    expected = patch_starts(entropy, **rule)
    frozen = entropy.copy()
    frozen.flags.writeable = False
    for same in (frozen, np.asfortranarray(entropy), entropy.astype(">f4"), entropy.repeat(2, axis=0)[::-2][::-1]):
        np.testing.assert_array_equal(patch_starts(same, **rule), expected)
        assert calibrate(same, 1.5, max_length=3, grid_width=4) == calibrate(entropy, 1.5, max_length=3, grid_width=4)


def test_one_image_and_images_of_many_views_are_cut_like_rows():
    entropy = np.random.default_rng(0).uniform(0, 9, (2, 3, 16)).astype(np.float32)
    rule = {"threshold": 4.0, "max_length": 3, "grid_width": 4}
    expected = literal(entropy.reshape(6, 16), **rule, row_boundary=True)
    for same in (entropy, torch.from_numpy(entropy)):
        assert patch_starts(same, **rule).tolist() == expected.reshape(2, 3, 16).tolist()
        assert patch_starts(same[1, 2], **rule).tolist() == expected[5].tolist()


def test_images_beyond_one_chunk_are_treated_alike():
    entropy = np.random.default_rng(0).normal(7.8, 0.5, (CHUNK // 256 + 3, 256)).astype(np.float32)
    rule = {"threshold": 7.8, "max_length": 4, "grid_width": 16}
    expected = patch_starts(torch.from_numpy(entropy), **rule)
    np.testing.assert_array_equal(patch_starts(entropy, **rule), expected.numpy())
    cells = simulate(entropy, thresholds=[7.8], max_lengths=[4], grid_width=16)
    np.testing.assert_array_equal(cells[7.8, 4].histogram, PatchCounts.of(expected).histogram)


good = np.ones((2, 16), np.float32)


@pytest.mark.parametrize(
    ("entropy", "changes", "message"),
    [
        (np.where(np.arange(32).reshape(2, 16) == 21, np.nan, good), {}, "token 5 of image 1 is NaN"),
        (torch.full((1, 16), math.nan), {}, "token 0 of image 0 is NaN"),
        (good, {"threshold": math.nan}, "threshold is NaN"),
        (good, {"max_length": 0}, "max_length is 0"),
        (good, {"max_length": -4}, "max_length is -4"),
        (good, {"max_length": 2.5}, "max_length is 2.5"),
        (good, {"max_length": 10**20}, "max_length is 1000"),
        (good, {"grid_width": 5}, "16 tokens per image"),
        (good, {"grid_width": 32}, "16 tokens per image"),
        (good, {"grid_width": 0}, "16 tokens per image"),
        (good.astype(int), {}, "int64"),
        (torch.ones(2, 16, dtype=torch.bfloat16), {}, "bfloat16"),
        (np.ones((2, 0)), {}, "0 tokens per image"),
        (np.ones(0), {}, "0 tokens per image"),
        (np.ones(()), {}, "1 tokens per image"),
    ],
)
def test_what_cannot_be_cut_is_refused(entropy, changes, message):
    with pytest.raises(InputError, match=message):
        patch_starts(entropy, **({"threshold": 7.8, "max_length": 4, "grid_width": 4} | changes))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_length": 0}, "max_length is 0"),
        ({"max_length": 1.5}, "max_length is 1.5"),
        ({"max_length": 10**20}, "max_length is 1000"),
        ({"threshold": math.nan}, "threshold is NaN"),
    ],
)
def test_a_rule_that_no_image_can_be_cut_by_is_refused_when_it_is_made(changed, message):
    with pytest.raises(InputError, match=message):
        replace(PatchRule(4, 2.0, 4), **changed)


def test_nan_in_a_later_chunk_is_named_by_its_own_image():
    entropy = np.ones((CHUNK // 16 + 5, 16), np.float32)
    entropy[CHUNK // 16 + 2, 3] = math.nan
    with pytest.raises(InputError, match=f"token 3 of image {CHUNK // 16 + 2} "):
        patch_starts(entropy, threshold=1.0, max_length=4, grid_width=4)


@hypothesis
@given(st.integers(1, 80), st.floats(1, 20))
def test_static_patches_are_those_of_the_division(tokens, patch_length):
    expected = oracle.starts(oracle.static_patches(tokens, patch_length))
    assert static_starts(3, tokens, patch_length).tolist() == [expected] * 3


@pytest.mark.parametrize("patch_length", [1.1, 1.12, 1.37, 1.81, 1.92, 2.0, 2.03, 2.16, 2.4, 3.0, 2.7, 7.0, 1000.5])
def test_static_lengths_are_the_decimal_numbers_they_are_written_as(patch_length):
    """Every n-th multiple of 1.1 tokens that is whole opens patch n; in floating point 33 / 1.1 lies below 30."""
    numerator = round(100 * patch_length)
    patch = [100 * t // numerator for t in range(1024)]
    expected = [t == 0 or patch[t] > patch[t - 1] for t in range(1024)]
    assert static_starts(1, 1024, patch_length)[0].tolist() == expected
    assert static_starts(1, 1024, np.float64(patch_length))[0].tolist() == expected


def test_static_patches_of_the_paper():
    starts = static_starts(2, 256, 1.81)
    lengths = patch_ids(starts)[0].bincount()
    assert len(lengths) == 141
    assert lengths.bincount().tolist() == [0, 26, 115]
    assert static_starts(1, 7, 1.0).all()


@pytest.mark.parametrize("patch_length", [0.99, 0.0, -2.0, math.inf, math.nan])
def test_impossible_static_lengths_are_refused(patch_length):
    with pytest.raises(InputError, match="static patch length"):
        static_starts(1, 16, patch_length)


def test_settings_lead_to_the_rule_they_name():
    entropy = torch.from_numpy(np.random.default_rng(0).uniform(0, 9, (3, 16)).astype(np.float32))
    dynamic = Patchify(threshold=4.0, max_length=3, row_boundary=False)
    expected = patch_starts(entropy, threshold=5.0, max_length=3, grid_width=4, row_boundary=False)
    assert torch.equal(PatchRule.of(dynamic, 5.0, 4).starts(entropy), expected)
    static = Patchify(strategy="static", p_avg=1.81, max_length=None)
    assert torch.equal(PatchRule.of(static, None, 4).starts(entropy), static_starts(3, 16, 1.81))
    for rule, provenance in (
        (PatchRule.of(dynamic, 5.0, 4), {"patchify": dynamic.model_dump(mode="json"), "threshold": 5.0}),
        (PatchRule.of(static, None, 4), {"patchify": static.model_dump(mode="json"), "threshold": None}),
        (None, {"patchify": None, "threshold": None}),
        (None, {}),
    ):
        assert PatchRule.of_model({"model": {"grid": [2, 4]}, "provenance": provenance}) == rule
        if rule is not None:
            assert PatchCounts.under(rule, entropy).mean == PatchCounts.of(rule.starts(entropy)).mean


@hypothesis
@given(grids(), st.lists(finite, min_size=1, max_size=3), st.lists(lengths, min_size=1, max_size=3), st.booleans())
def test_simulation_counts_what_the_rule_cuts(grid, thresholds, max_lengths, row_boundary):
    entropy, width = grid
    rule = {"grid_width": width, "row_boundary": row_boundary}
    cells = simulate(entropy, thresholds=thresholds, max_lengths=max_lengths, **rule)
    of_tensor = simulate(torch.from_numpy(entropy), thresholds=thresholds, max_lengths=max_lengths, **rule)
    assert {cell: counts.mean for cell, counts in of_tensor.items()} == {cell: cells[cell].mean for cell in cells}
    assert set(cells) == {(threshold, length) for threshold in thresholds for length in max_lengths}
    for (threshold, max_length), counts in cells.items():
        starts = literal(entropy, threshold=threshold, max_length=max_length, **rule)
        patches = starts.sum(1)
        np.testing.assert_array_equal(counts.histogram, np.bincount(patches, minlength=entropy.shape[1] + 1))
        np.testing.assert_array_equal(counts.histogram, PatchCounts.of(starts).histogram)
        np.testing.assert_array_equal(counts.histogram, PatchCounts.of(torch.from_numpy(starts)).histogram)
        assert counts.images == len(entropy)
        assert counts.mean == pytest.approx(patches.mean())
        assert counts.mean_patch_length == pytest.approx((entropy.shape[1] / patches).mean())
        for q in (0, 10, 50, 100):
            assert counts.percentile(q) == np.percentile(patches, q, method="inverted_cdf")


@pytest.mark.parametrize("row_boundary", [True, False])
def test_agreement_counts_the_tokens_that_no_rule_decides(row_boundary):
    expected, found = (torch.rand(5, 12, generator=torch.Generator().manual_seed(i)) > 0.6 for i in range(2))
    agreement = Agreement.of(expected, found, PatchRule(4, 1.0, row_boundary=row_boundary))
    pairs = [
        (a, b)
        for one, other in zip(expected.tolist(), found.tolist(), strict=True)
        for t, (a, b) in enumerate(zip(one, other, strict=True))
        if t > 1 and not (row_boundary and t in (0, 4, 8))
    ]
    assert agreement.tokens == len(pairs) == 5 * (8 if row_boundary else 10)
    assert agreement.share == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    assert agreement.precision == pytest.approx(sum(a and b for a, b in pairs) / sum(b for _, b in pairs))
    assert agreement.recall == pytest.approx(sum(a and b for a, b in pairs) / sum(a for a, _ in pairs))
    by_chance = [a == b for a, _ in pairs for _, b in pairs]
    assert agreement.chance == pytest.approx(sum(by_chance) / len(by_chance))


def test_agreement_without_starts():
    none = torch.zeros(2, 8, dtype=torch.bool)
    agreement = Agreement.of(none, none, PatchRule(4, 1.0))
    assert (agreement.share, agreement.chance, agreement.precision, agreement.recall) == (1, 1, None, None)


def test_simulation_of_nothing_is_refused():
    with pytest.raises(InputError, match="0 images"):
        simulate(np.ones((0, 16), np.float32), thresholds=[1.0], max_lengths=[4], grid_width=4)
    with pytest.raises(InputError, match="token 3 of image 1 is NaN"):
        simulate(
            np.where(np.arange(32).reshape(2, 16) == 19, np.nan, good),
            thresholds=[1.0],
            max_lengths=[4],
            grid_width=4,
        )


@hypothesis
@given(grids(), lengths, st.booleans(), st.floats(0, 1), st.sampled_from([np.float32, np.float64]))
def test_calibration_is_the_best_of_all_thresholds(grid, max_length, row_boundary, share, dtype):
    entropy, width = grid[0].astype(dtype), grid[1]
    rule = {"max_length": max_length, "grid_width": width, "row_boundary": row_boundary}

    def p_avg(threshold):
        return PatchCounts.of(patch_starts(entropy, threshold=threshold, **rule)).mean_patch_length

    occurring = np.unique(entropy[np.isfinite(entropy)])
    candidates = [-1.0, *occurring.tolist()]
    reachable = [p_avg(threshold) for threshold in candidates]
    assert reachable == sorted(reachable)
    target = reachable[0] + share * (reachable[-1] - reachable[0])
    target = min(max(target, reachable[0]), reachable[-1])
    threshold = calibrate(entropy, target, **rule)
    assert math.isfinite(threshold)
    assert float(dtype(threshold)) == threshold
    assert abs(p_avg(threshold) - target) == min(abs(value - target) for value in reachable)


def test_calibration_reaches_both_ends_and_every_step():
    entropy = np.arange(16, dtype=np.float32)[None] / 2
    rule = {"max_length": None, "grid_width": 16}
    for patches in range(2, 17):
        threshold = calibrate(entropy, 16 / patches, **rule)
        assert patch_starts(entropy, threshold=threshold, **rule).sum() == patches


def test_calibration_between_two_far_steps_takes_the_nearer():
    entropy = np.full((4, 16), 5.0, np.float32)
    rule = {"max_length": 4, "grid_width": 16}
    assert calibrate(entropy, 1.1, **rule) < 5 <= calibrate(entropy, 3.0, **rule)  # P_avg is 1 or 16 / 5


def test_calibration_of_more_images_than_the_search_begins_with():
    entropy = np.random.default_rng(0).normal(7.8, 0.5, (SAMPLE // 64 + 1000, 64)).astype(np.float32)
    entropy[1::2] += 1  # the evenly spaced part, every second image, is unlike the whole
    entropy[:, 0] = math.inf
    rule = {"max_length": 4, "grid_width": 8}
    threshold = calibrate(entropy, 1.6, **rule)
    around = [float(np.nextafter(np.float32(threshold), np.float32(end))) for end in (-math.inf, math.inf)]
    occurring = np.unique(entropy[:, 2:])
    place = np.searchsorted(occurring, threshold)
    steps = [*around, *occurring[place - 1 : place + 2].tolist(), threshold]
    cells = simulate(entropy, thresholds=steps, max_lengths=[4], grid_width=8)
    off = [abs(cells[step, 4].mean_patch_length - 1.6) for step in steps]
    assert off[-1] == min(off) < 1e-5


@pytest.mark.parametrize("target", [0.5, 3.3, math.nan])
def test_an_unreachable_mean_length_names_the_reachable_range(target):
    entropy = np.random.default_rng(0).uniform(0, 9, (4, 16))
    with pytest.raises(InputError, match=r"from 1\.0000 to 3\.2000"):
        calibrate(entropy, target, max_length=4, grid_width=16)


@hypothesis
@given(grids(), st.floats(0, 1))
def test_calibration_to_a_cost(grid, share):
    entropy, width = grid
    rule = {"max_length": 4, "grid_width": width}

    def cost(patches):
        return 3 + patches + 0.01 * patches**2

    def mean_cost(threshold):
        patches = patch_starts(entropy, threshold=threshold, **rule).sum(1)
        return math.fsum(cost(patches)) / len(patches)

    costs = [mean_cost(threshold) for threshold in [-1.0, *np.unique(entropy[np.isfinite(entropy)]).tolist()]]
    target = min(max(costs) - share * (max(costs) - min(costs)), max(costs))
    target = max(target, min(costs))
    try:
        threshold = calibrate_cost(entropy, target, cost=cost, **rule)
    except InputError:  # the two ends of the range are rounded differently here and there
        assert min(abs(target - end) for end in (min(costs), max(costs))) < 1e-9
        return
    assert abs(mean_cost(threshold) - target) == pytest.approx(min(abs(value - target) for value in costs), abs=1e-9)


def test_an_unreachable_cost_names_the_reachable_range():
    entropy = np.random.default_rng(0).uniform(0, 9, (4, 16))
    with pytest.raises(InputError, match=r"from 5\.0000 to 16\.0000"):
        calibrate_cost(entropy, 17.0, cost=lambda patches: patches, max_length=4, grid_width=16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_starts_on_a_gpu_are_those_on_the_cpu():
    entropy = torch.randn(64, 256) + 7.8
    rule = {"threshold": 7.8, "max_length": 4, "grid_width": 16}
    assert torch.equal(patch_starts(entropy.cuda(), **rule).cpu(), patch_starts(entropy, **rule))
    assert torch.equal(static_starts(2, 256, 1.81, "cuda").cpu(), static_starts(2, 256, 1.81))
