"""Loss per token by its place in a patch, by what began the patch, and by entropy; numbers of patches compared."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dpar.patches.counts import PatchCounts
from dpar.patches.rule import PatchRule

REASONS = ("inside", "first tokens and rows", "entropy above E_Th", "P_max reached")
QUANTILES = 10  # groups of equally many tokens by entropy
PERCENTILES = (5, 50, 95)  # of patches per image


def place_in_patch(starts: Bool[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Tokens of its patch before each token, from 0 at the start of a patch."""
    positions = torch.arange(starts.shape[1], device=starts.device)
    return positions - torch.where(starts, positions, 0).cummax(1).values


def patch_lengths(starts: Bool[Tensor, "B T"]) -> Int[np.ndarray, " lengths"]:
    """Patches of each length in tokens, over all images; entry 0 is for those of no token, and is 0."""
    ends = torch.cat((starts[:, 1:], torch.ones_like(starts[:, :1])), 1)
    return np.bincount((place_in_patch(starts)[ends] + 1).cpu().numpy())


def reasons(starts: Bool[Tensor, "B T"], entropy: Float[Tensor, "B T"], rule: PatchRule) -> Int[Tensor, "B T"]:
    """The number in `REASONS` of why each token begins a patch or does not, under a dynamic rule.

    Args:
        entropy: nats, that gave the starts.
    """
    assert rule.threshold is not None
    forced = rule.forced(torch.arange(starts.shape[1], device=starts.device)).expand_as(starts)
    opened = torch.where(entropy > rule.threshold, 2, 3)
    return torch.where(~starts, 0, torch.where(forced, 1, opened))


def entropy_groups(entropy: Float[Tensor, "B T"], groups: int = QUANTILES) -> Int[Tensor, "B T"]:
    """The group of each token by its entropy, all equally large, from 0 for the smallest; -1 for an image's first.

    Args:
        entropy: nats, without a number for the first token.
    """
    later = entropy[:, 1:].double().cpu().numpy()
    edges = np.quantile(later, np.arange(1, groups) / groups)
    found = torch.full(entropy.shape, -1)
    found[:, 1:] = torch.from_numpy(np.searchsorted(edges, later, side="right"))
    return found


def by_group(
    group: Int[Tensor, "B T"],
    losses: Sequence[Float[Tensor, "B T"]],
    entropy: Float[Tensor, "B T"],
    starts: Bool[Tensor, "B T"],
) -> list[dict[str, Any]]:
    """Each group that has tokens, by rising number: share of tokens and starts, mean entropy and losses, for JSON.

    Of two or more networks also the mean difference of the first loss from the second, with its standard error over
    images: of tokens of one image it says nothing that they were independent.

    Args:
        group: of each token; those below 0 are left out.
        losses: nats, of each network.
        entropy: nats; means are over tokens that have one.
    """
    rows = []
    for number in range(int(group.max()) + 1):
        chosen = group == number
        if not (count := int(chosen.sum())):
            continue
        finite = entropy[chosen & entropy.isfinite()].double()
        row = {
            "group": number,
            "tokens": count / group.numel(),
            "starts": starts[chosen].double().mean().item(),
            "entropy": finite.mean().item() if len(finite) else None,
            "loss": [loss[chosen].double().mean().item() for loss in losses],
        }
        if len(losses) > 1:
            per_image = ((losses[0] - losses[1]).double() * chosen).sum(1)
            row |= {"difference": (mean := per_image.sum().item() / count)}
            row |= {"difference_se": (per_image - mean * chosen.sum(1)).square().sum().sqrt().item() / count}
        rows.append(row)
    return rows


def patches_per_image(patches: Int[np.ndarray, " N"], tokens: int) -> dict[str, float]:
    """Mean and percentiles of the patches per image, and P_avg, for JSON."""
    counts = PatchCounts(np.bincount(patches, minlength=tokens + 1))
    found: dict[str, float] = {"images": counts.images, "mean": counts.mean}
    found |= {f"p{q}": counts.percentile(q) for q in PERCENTILES}
    return found | {"mean_patch_length": counts.mean_patch_length}


def largest_difference(a: Int[np.ndarray, " N"], b: Int[np.ndarray, " M"]) -> float:
    """The largest difference of two empirical distribution functions (Kolmogorov and Smirnov), from 0 to 1."""
    values = np.union1d(a, b)
    shares = [np.searchsorted(np.sort(x), values, side="right") / len(x) for x in (a, b)]
    return float(np.abs(shares[0] - shares[1]).max())
