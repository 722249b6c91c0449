"""Losses and lengths by patch, against values worked out by hand."""

import numpy as np
import pytest
import torch

from dpar.evaluation.patch_losses import (
    REASONS,
    by_group,
    entropy_groups,
    largest_difference,
    patch_lengths,
    patches_per_image,
    place_in_patch,
    reasons,
)
from dpar.patches.rule import PatchRule

INF = float("inf")
# two images of 2 x 4 tokens: a | b c d | e | f g h, and a | b c | d | e f | g | h
ENTROPY = torch.tensor([[INF, 9, 1, 1, 0, 3, 1, 2], [INF, 0, 1, 5, 0, 2, 3, 4]])
RULE = PatchRule(grid_width=4, threshold=2.0, max_length=3)
STARTS = torch.tensor([[1, 1, 0, 0, 1, 1, 0, 0], [1, 1, 0, 1, 1, 0, 1, 1]]).bool()


def test_the_example_is_what_the_rule_gives():
    assert torch.equal(RULE.starts(ENTROPY), STARTS)


def test_places_and_lengths_of_patches():
    assert place_in_patch(STARTS).tolist() == [[0, 0, 1, 2, 0, 0, 1, 2], [0, 0, 1, 0, 0, 1, 0, 0]]
    assert patch_lengths(STARTS).tolist() == [0, 6, 2, 2]


def test_reasons_why_patches_begin():
    names = [[REASONS[i] for i in row] for row in reasons(STARTS, ENTROPY, RULE).tolist()]
    forced, inside, opened = REASONS[1], REASONS[0], REASONS[2]
    assert names[0] == [forced, forced, inside, inside, forced, opened, inside, inside]
    assert names[1] == [forced, forced, inside, opened, forced, inside, opened, opened]
    long = PatchRule(grid_width=8, threshold=99.0, max_length=3)
    quiet = torch.zeros(1, 8)
    assert reasons(long.starts(quiet), quiet, long)[0].tolist() == [1, 1, 0, 0, 3, 0, 0, 3]


def test_groups_of_entropy_are_equally_large_and_rise():
    entropy = torch.cat((torch.full((4, 1), INF), torch.randperm(40).reshape(4, 10).float()), 1)
    groups = entropy_groups(entropy, 5)
    assert (groups[:, 0] == -1).all()
    assert torch.equal(groups[:, 1:], (entropy[:, 1:] // 8).long())


def test_means_of_a_group_and_their_difference():
    mine, other = torch.tensor([[4.0, 1, 2, 3], [0, 1, 5, 2]]), torch.tensor([[3.0, 1, 1, 3], [1, 1, 2, 2]])
    group = torch.tensor([[0, 2, 2, -1], [0, 2, 2, 2]])
    entropy = torch.tensor([[INF, 1, 2, 9], [INF, 3, 4, 5]])
    starts = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 0]]).bool()
    first, second = by_group(group, [mine, other], entropy, starts)
    assert first == {
        "group": 0, "tokens": 0.25, "starts": 1.0, "entropy": None, "loss": [2.0, 2.0], "difference": 0.0,
        "difference_se": pytest.approx(2**0.5 / 2),
    }  # fmt: skip
    assert (second["group"], second["tokens"], second["starts"], second["entropy"]) == (2, 5 / 8, 0.6, 3.0)
    assert second["loss"] == pytest.approx([11 / 5, 7 / 5])
    assert second["difference"] == pytest.approx(4 / 5)
    # images have differences 1 of 2 tokens and 3 of 3
    assert second["difference_se"] == pytest.approx(((1 - 2 * 0.8) ** 2 + (3 - 3 * 0.8) ** 2) ** 0.5 / 5)
    assert "difference" not in by_group(group, [mine], entropy, starts)[0]


def test_the_standard_error_is_that_of_a_mean_over_images():
    torch.manual_seed(0)
    losses = [torch.rand(400, 6) + torch.rand(400, 1), torch.rand(400, 6)]
    (row,) = by_group(torch.zeros(400, 6, dtype=torch.long), losses, torch.ones(400, 6), torch.ones(400, 6).bool())
    per_image = (losses[0] - losses[1]).mean(1)
    assert row["difference"] == pytest.approx(per_image.mean().item(), rel=1e-5)
    assert row["difference_se"] == pytest.approx(per_image.std().item() / 20, rel=2e-3)


def test_patches_of_images_and_the_distance_of_their_distributions():
    found = patches_per_image(np.array([2, 4, 4, 8]), 8)
    assert found == {
        "images": 4, "mean": 4.5, "p5": 2, "p50": 4, "p95": 8, "mean_patch_length": pytest.approx((4 + 2 + 2 + 1) / 4),
    }  # fmt: skip
    assert largest_difference(np.array([1, 2, 3]), np.array([3, 1, 2])) == 0
    assert largest_difference(np.array([1, 1]), np.array([2, 3, 4])) == 1
    assert largest_difference(np.array([1, 2, 3, 4]), np.array([3, 4])) == pytest.approx(0.5)
