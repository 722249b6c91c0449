"""The simulated schedules: counted by hand, and lock-step is what the sampler does."""

import numpy as np
import pytest

from dpar.sampling.schedule import PARTS, CallCost, scheduled

COSTS = {part: CallCost(10.0**i, 0.25 * 10.0**i) for i, part in enumerate(PARTS)}


def starts_of(*images: str) -> np.ndarray:
    return np.array([[token == "|" for token in image] for image in images])


def random_starts(images=37, tokens=24, seed=0):
    starts = np.random.default_rng(seed).random((images, tokens)) < 0.5
    starts[:, 0] = True
    return starts


def test_lock_step_runs_the_patch_transformer_for_those_that_open_a_patch():
    starts = starts_of("||..", "|.|.", "||.|")
    found = scheduled(starts, 3, 0.0, COSTS)
    assert found.calls == {"patch_transformer": 4, "decoder": 4, "encoder": 4, "entropy_model": 4}
    assert found.images == {"patch_transformer": 3 + 2 + 1 + 1, "decoder": 12, "encoder": 12, "entropy_model": 12}
    assert found.seconds == pytest.approx(4 * 1111 + 0.25 * (12 * 1011 + 7 * 100))


def test_waiting_for_everyone_takes_a_call_a_patch():
    """Image 0 has patches of 1 and 3 tokens, image 1 of 3 and 1: patch by patch, 2 calls of the patch transformer."""
    found = scheduled(starts_of("||..", "|..|"), 2, 1.0, COSTS)
    assert found.calls["patch_transformer"] == 2
    assert found.images["patch_transformer"] == 4
    assert found.calls["decoder"] == 6  # the longest patch of each round: 3 and 3
    assert found.images["decoder"] == 8


def test_an_image_that_ends_is_replaced():
    found = scheduled(starts_of("|.", "|.", "||"), 2, 0.0, COSTS)
    assert found.calls["decoder"] == 4
    assert found.images["decoder"] == 6


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("slots", [1, 8, 64])
def test_every_token_and_every_patch_is_computed_once(share, slots):
    starts = random_starts()
    found = scheduled(starts, slots, share, COSTS)
    assert found.images["patch_transformer"] == starts.sum()
    for part in ("decoder", "encoder", "entropy_model"):
        assert found.images[part] == starts.size


def test_waiting_trades_calls_of_the_patch_transformer_for_calls_of_the_rest():
    calls = [scheduled(random_starts(), 16, share, COSTS).calls for share in (0.0, 0.5, 1.0)]
    patches, tokens = ([c[part] for c in calls] for part in ("patch_transformer", "decoder"))
    assert patches == sorted(patches, reverse=True)
    assert tokens == sorted(tokens)
    assert patches[-1] < patches[0]
    assert tokens[-1] > tokens[0]


def test_lock_step_waits_for_nobody():
    starts = random_starts(images=48)
    found = scheduled(starts, 16, 0.0, COSTS)
    assert found.calls["decoder"] == 3 * 24
    assert found.calls["patch_transformer"] == sum(starts[i : i + 16].any(0).sum() for i in (0, 16, 32))
