"""Frechet distance of two sets of features, each taken for a Gaussian: FID, sFID and every FD[extractor, dims]."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dpar.errors import InputError

BLOCK = 8192  # rows whose float64 copy is held at a time


@dataclass(frozen=True)
class Gaussian:
    """Mean and unbiased covariance, float64, of `count` features."""

    mean: Float[Tensor, "D"]
    covariance: Float[Tensor, "D D"]
    count: int


def fit_gaussian(features: Float[Tensor, "N D"]) -> Gaussian:
    """The float64 mean and the covariance over N - 1 of features of any float type.

    Raises:
        InputError: a feature is not finite, or N <= D, where the covariance is singular and the distance means nothing.
    """
    count, dims = features.shape
    _check_enough(count, dims)
    mean = sum((block.double().sum(0) for block in features.split(BLOCK)), torch.zeros(())) / count
    _check_finite(mean)
    covariance = mean.new_zeros(dims, dims)
    for block in features.split(BLOCK):
        centred = block.double() - mean
        covariance.addmm_(centred.T, centred)
    covariance /= count - 1
    _check_finite(covariance)
    return Gaussian(mean, (covariance + covariance.T) / 2, count)


class Moments:
    """Mean and covariance of features that pass by once and are not kept, in float64.

    Sums are taken about the first features' mean, so that large means cost no digits.
    """

    def __init__(self):
        self.count = self.dims = 0

    def add(self, features: Float[Tensor, "N D"]) -> None:
        """Counts these features in."""
        block = features.double()
        if not self.count:
            self._centre, self.dims = block.mean(0), block.shape[1]
            self._sum, self._products = block.new_zeros(self.dims), block.new_zeros(self.dims, self.dims)
        block = block - self._centre
        self._sum += block.sum(0)
        self._products.addmm_(block.T, block)
        self.count += len(block)

    def gaussian(self) -> Gaussian:
        """The Gaussian that `fit_gaussian` gives for all features together.

        Raises:
            InputError: as `fit_gaussian`.
        """
        _check_enough(self.count, self.dims)
        shift = self._sum / self.count
        _check_finite(shift)
        covariance = (self._products - self.count * shift.outer(shift)) / (self.count - 1)
        _check_finite(covariance)
        return Gaussian((self._centre + shift).cpu(), ((covariance + covariance.T) / 2).cpu(), self.count)


def _check_enough(count: int, dims: int) -> None:
    if count <= dims:
        raise InputError(
            f"{count} samples are too few for features of {dims} dimensions: their covariance is singular; "
            f"give more than {dims}, and at least {10 * dims} for a number that means something"
        )


def _check_finite(moment: Float[Tensor, "*any"]) -> None:
    if not moment.isfinite().all():
        raise InputError(
            "the features contain NaN, infinity or numbers too large to square; look at the images or the network that "
            "made them"
        )


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|m_a - m_b|^2 + Tr(S_a + S_b - 2 (S_a^1/2 S_b S_a^1/2)^1/2), by symmetric eigenvalues in float64.

    The matrix under the root is similar to S_a S_b and symmetric, so that its eigenvalues are real and not negative;
    no library's `sqrtm` is called.

    Raises:
        InputError: the two have different dimensions.
    """
    if a.mean.shape != b.mean.shape:
        raise InputError(
            f"features of {len(a.mean)} and of {len(b.mean)} dimensions cannot be compared; use one extractor for both"
        )
    values, vectors = torch.linalg.eigh(a.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = root @ b.covariance @ root
    overlap = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * overlap
    return max(distance.item(), 0.0)
