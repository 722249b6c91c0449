"""Kernel distance of two sets of features (cubic kernel): KID, which has no bias at small N."""

import torch
from jaxtyping import Float
from torch import Tensor

from dpar.errors import InputError

TILE = 2048  # rows and columns of the kernel matrix held at a time


def kernel_distance(a: Float[Tensor, "N D"], b: Float[Tensor, "M D"]) -> float:
    """The unbiased squared MMD of all pairs under k(x, y) = (x.y / D + 1)^3, in float64; below 0 where a equals b.

    It is the mean that the usual KID (an average over random subsets of 1,000) estimates, without its randomness.
    Free of bias for independent draws; images with balanced labels are not, and score lower by about the spread of the
    classes over N: compare it with the noise floor, which is drawn with balanced labels too.

    Raises:
        InputError: a set has fewer than two features, or one is not finite.
    """
    if min(len(a), len(b)) < 2:
        raise InputError(f"KID needs two images on either side, found {len(a)} and {len(b)}")
    within = sum(_off_diagonal_sum(x) / (len(x) * (len(x) - 1)) for x in (a, b))
    distance = within - 2 * _kernel_sum(a, b) / (len(a) * len(b))
    if not torch.tensor(distance).isfinite():
        raise InputError("the features contain NaN or infinity; look at the images or the network that made them")
    return distance


def subset_kernel_distance(
    a: Float[Tensor, "N D"], b: Float[Tensor, "M D"], *, subsets: int = 100, size: int = 1000, seed: int = 0
) -> float:
    """The mean of `kernel_distance` over random subsets without replacement, for sets too large for all pairs.

    Args:
        size: features of either set in a subset, at most the smaller set.
    """
    generator = torch.Generator().manual_seed(seed)
    size = min(size, len(a), len(b))
    draws = (tuple(x[torch.randperm(len(x), generator=generator)[:size]] for x in (a, b)) for _ in range(subsets))
    return sum(kernel_distance(x, y) for x, y in draws) / subsets


def _kernel(x: Float[Tensor, "N D"], y: Float[Tensor, "M D"]) -> Float[Tensor, "N M"]:
    return (x.double() @ y.double().T / x.shape[1] + 1) ** 3


def _kernel_sum(a: Float[Tensor, "N D"], b: Float[Tensor, "M D"]) -> float:
    return sum(_kernel(x, y).sum().item() for x in a.split(TILE) for y in b.split(TILE))


def _off_diagonal_sum(a: Float[Tensor, "N D"]) -> float:
    diagonal = sum(((x.double().square().sum(1) / x.shape[1] + 1) ** 3).sum().item() for x in a.split(TILE))
    tiles = a.split(TILE)
    lower = sum(_kernel(x, y).sum().item() for i, x in enumerate(tiles) for y in tiles[:i])
    return 2 * lower + sum(_kernel(x, x).sum().item() for x in tiles) - diagonal
