"""The share of samples that lie among real images, and the share of real images that lie among samples."""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dpar.errors import InputError

TILE = 1024  # rows and columns of distances held at a time: 4 MiB, which stay in a cache and in memory that is at hand
ROWS = 8  # whose neighbours' exact distances are computed at a time, within a processor's cache
FEW = 1024  # rows of distances that are screened again in float64
SPARE = 4  # neighbours beyond the k-th whose distances are computed exactly, should float32 have misplaced them


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares between 0 and 1."""

    precision: float
    recall: float


@dataclass(frozen=True)
class _Points:
    """Features as given, and how tiles of them are brought near 0 and to size 1, where float32 keeps differences."""

    raw: Float[Tensor, "N D"]
    centre: Float[Tensor, "D"]
    scale: float

    def rows(
        self, which: slice | Int[Tensor, "n"], dtype: torch.dtype = torch.float32
    ) -> tuple[Float[Tensor, "n D"], Float[Tensor, "n"]]:
        wide = torch.promote_types(self.raw.dtype, dtype)
        near = (self.raw[which].to(wide) - self.centre.to(wide)).mul_(1 / self.scale).to(dtype)
        return near, near.square().sum(1)


def precision_recall(samples: Float[Tensor, "N D"], reference: Float[Tensor, "M D"], k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al. 2019) with the ADM evaluator's conventions.

    A point's ball reaches to its k-th nearest neighbour in its own set (the (k+1)-th smallest distance, itself
    included) and is closed (`<=`). Precision is the share of samples in some ball of the reference, recall the share of
    the reference in some ball of the samples.

    Distances are screened in float32 tiles, and every comparison that rounding could turn is settled in float64 from
    the features as given: the result is that of float64 throughout, in the memory of a tile. A point whose neighbours
    are nearer than float32 can tell, as in a collapsed set, is screened again in float64.

    Raises:
        InputError: a set has no k-th neighbour, or a feature is not finite.
    """
    if min(len(samples), len(reference)) <= k:
        raise InputError(f"precision and recall need more than k = {k} images, found {len(samples)}, {len(reference)}")
    centre = sum((block.double().sum(0) for block in reference.split(TILE)), torch.zeros(())) / len(reference)
    square = sum(
        (block.double() - centre).square().sum().item() for x in (samples, reference) for block in x.split(TILE)
    )
    if not math.isfinite(square):
        raise InputError("the features contain NaN or infinity; look at the images or the network that made them")
    scale = math.sqrt(square / (len(samples) + len(reference))) or 1.0
    rows, columns = _Points(samples, centre, scale), _Points(reference, centre, scale)
    sample_radii, reference_radii = _squared_radii(rows, k), _squared_radii(columns, k)

    inside = torch.zeros(len(samples), dtype=torch.bool, device=samples.device)
    covered = torch.zeros(len(reference), dtype=torch.bool, device=reference.device)
    for i, j, distances, slack in _tiles(rows, columns):
        radii = (reference_radii[j] / scale**2).float()
        inside[i] = _within(inside[i], distances - radii, slack, samples[i], reference[j], reference_radii[j])
        radii = (sample_radii[i] / scale**2).float()
        covered[j] = _within(covered[j], distances.T - radii, slack.T, reference[j], samples[i], sample_radii[i])
    return PrecisionRecall(inside.double().mean().item(), covered.double().mean().item())


def _tiles(a: _Points, b: _Points) -> Iterator[tuple[slice, slice, Float[Tensor, "n m"], Float[Tensor, "n m"]]]:
    """Rows, columns, squared distances in units of the scale, and a bound on their rounding error.

    Of a set with itself, only the tiles on and above the diagonal.
    """
    # ten times the error of a sum of D products added pairwise or in a few dozen lanes
    unit = torch.finfo(torch.float32).eps * (10 + math.sqrt(a.raw.shape[1]))
    for start in range(0, len(a.raw), TILE):
        x, x_square = a.rows(slice(start, start + TILE))
        for column in range(start if a is b else 0, len(b.raw), TILE):
            y, y_square = b.rows(slice(column, column + TILE))
            size = x_square[:, None] + y_square
            yield (
                slice(start, start + len(x)),
                slice(column, column + len(y)),
                torch.addmm(size, x, y.T, alpha=-2),
                size.mul_(unit),
            )


def _exact(x: Float[Tensor, "... D"], y: Float[Tensor, "... D"]) -> Float[Tensor, "..."]:
    return (x.double() - y).square_().sum(-1)


def _squared_radii(points: _Points, k: int) -> Float[Tensor, "N"]:
    """The squared distance of each point to its k-th neighbour in its own set, float64, in the features' own units."""
    keep = k + 1 + SPARE
    radii = points.raw.new_empty(len(points.raw), dtype=torch.float64)
    unsure = []
    found = defaultdict(list)  # first row of a tile -> its nearest, tile by tile; a tile serves its mirror image too
    for i, j, distances, slack in _tiles(points, points):
        mirrored = [(i, j, distances, slack)] + ([(j, i, distances.T, slack.T)] if i != j else [])
        for own, other, between, error in mirrored:
            found[own.start].append((*_nearest(between, keep, other.start), error.amax(1, keepdim=True)))
        if j.stop == len(points.raw):
            values, indices, errors = (torch.cat(parts, 1) for parts in zip(*found.pop(i.start), strict=True))
            radii[i] = _settled(points, torch.arange(i.start, i.stop, device=values.device), values, indices, k)
            # whoever was left out is at least this far away
            farthest = values.topk(min(keep, values.shape[1]), largest=False).values[:, -1] - errors.amax(1)
            near = (radii[i] > 0) & (radii[i] / points.scale**2 > farthest)
            unsure += [near.nonzero()[:, 0] + i.start] if keep < len(points.raw) else []
    for rows in torch.cat(unsure).split(FEW) if unsure else []:
        x, x_square = points.rows(rows, torch.float64)
        parts = []
        for start in range(0, len(points.raw), TILE):
            y, y_square = points.rows(slice(start, start + TILE), torch.float64)
            parts.append(_nearest(torch.addmm(x_square[:, None] + y_square, x, y.T, alpha=-2), keep, start))
        values, indices = (torch.cat(part, 1) for part in zip(*parts, strict=True))
        radii[rows] = _settled(points, rows, values, indices, k)
    return radii


def _nearest(distances: Float[Tensor, "n m"], keep: int, start: int) -> tuple[Float[Tensor, "n _"], Int[Tensor, "n _"]]:
    """The smallest distances of each row, and whose they are if the first column is number `start`."""
    nearest = distances.topk(min(keep, distances.shape[1]), largest=False)
    return nearest.values, nearest.indices + start


def _settled(
    points: _Points, rows: Int[Tensor, "n"], values: Float[Tensor, "n m"], indices: Int[Tensor, "n m"], k: int
) -> Float[Tensor, "n"]:
    """The squared radii of these points, exact among the candidates that screening found nearest."""
    keep = min(k + 1 + SPARE, values.shape[1])
    neighbours = indices.gather(1, values.topk(keep, largest=False).indices)
    return torch.cat(
        [
            _exact(points.raw[own, None], points.raw[some]).kthvalue(k + 1).values
            for own, some in zip(rows.split(ROWS), neighbours.split(ROWS), strict=True)
        ]
    )


def _within(
    known: Bool[Tensor, "n"],
    margin: Float[Tensor, "n m"],
    slack: Float[Tensor, "n m"],
    points: Float[Tensor, "n D"],
    centres: Float[Tensor, "m D"],
    squared_radii: Float[Tensor, "m"],
) -> Bool[Tensor, "n"]:
    """Mask of points that are `known` to be, or lie, in some closed ball.

    Args:
        margin: float32 squared distance less squared radius; its sign is sure where it exceeds `slack`.
    """
    inside = known | (margin < -slack).any(1)
    possible = margin <= slack
    for row in (possible.any(1) & ~inside).nonzero()[:, 0].tolist():
        candidates = possible[row].nonzero()[:, 0]
        for some in candidates[margin[row, candidates].argsort()].split(64):
            if (_exact(points[row], centres[some]) <= squared_radii[some]).any():
                inside[row] = True
                break
    return inside
