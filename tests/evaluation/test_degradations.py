"""Images made worse: by as much as is said, and by nothing else."""

import pytest
import torch

from dpar.evaluation.degradations import blurred, fewest_rows, noisy, replaced, rows_without_classes


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("side", [28, 56])
def test_a_blur_spreads_a_point_by_its_deviation_and_keeps_a_plain_image(side):
    point = torch.zeros(1, 3, side + 1, side + 1, dtype=torch.uint8)
    point[..., side // 2, side // 2] = 255
    found = blurred(point, 1.5)[0, 0].double()
    place = torch.arange(side + 1) - side // 2
    spread = (found.sum(0) * place.square()).sum() / found.sum()
    assert spread.sqrt().item() == pytest.approx(1.5 * (side + 1) / 28, rel=0.15)  # bytes cut the tails off
    assert torch.equal(found, found.T)
    plain = torch.full((2, 3, side, side), 77, dtype=torch.uint8)
    assert torch.equal(blurred(plain, 0.8), plain)


def test_noise_has_its_deviation_and_is_grey():
    images = torch.full((50, 3, 28, 28), 128, dtype=torch.uint8)
    found = noisy(images, 0.08, random()).double() - 128
    assert found.std().item() == pytest.approx(0.08 * 255, rel=0.02)
    assert found.mean().item() == pytest.approx(0, abs=0.3)
    assert torch.equal(found[:, 0], found[:, 2])
    assert noisy(torch.full_like(images, 255), 0.08, random()).max() == 255  # and not around the corner
    assert noisy(torch.full_like(images, 255), 0.08, random()).min() > 128


@pytest.mark.parametrize(("strength", "kept"), [(0.0, 10), (0.1, 9), (0.4, 6)])
def test_rows_without_classes_are_different_rows_of_the_others(strength, kept):
    labels = torch.arange(1000) % 10
    rows = rows_without_classes(labels, strength, 500, random())
    assert len(rows.unique()) == 500
    assert len(labels[rows].unique()) == kept
    assert not torch.equal(rows, rows_without_classes(labels, strength, 500, random(1)))
    assert len(rows_without_classes(labels, 0.9, 500, random())) == 100


@pytest.mark.parametrize(("strength", "left"), [(0.0, 15), (0.2, 10), (0.6, 3), (1.0, 0)])
def test_the_fewest_rows_are_left_by_the_largest_classes(strength, left):
    labels = torch.repeat_interleave(torch.tensor([0, 3, 4, 6, 9]), torch.tensor([4, 1, 5, 2, 3]))
    assert fewest_rows(labels, strength) == left
    if left:
        least = min(len(rows_without_classes(labels, strength, 99, random(seed))) for seed in range(100))
        assert least == left


def test_replaced_tokens_are_others_and_of_the_share_that_is_said():
    tokens = torch.randint(0, 16, (200, 5, 7), generator=random())
    for strength in (0.0, 0.1, 1.0):
        found = replaced(tokens, strength, 16, random(1))
        assert found.min() >= 0
        assert found.max() < 16
        assert (found != tokens).float().mean().item() == pytest.approx(strength, abs=0.01)
    shift = (found - tokens) % 16
    assert set(shift.unique().tolist()) == set(range(1, 16))
