"""The threshold that gives a wanted mean patch length, or a wanted cost."""

import math
import sys
from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from dpar.errors import InputError
from dpar.patches.counts import length_by_patches, simulate
from dpar.patches.rule import check_array, host_chunks, on_host

FAR = 0.05
"""Share of a target by which the nearest step may miss it without a word."""

SAMPLE = 2**22
"""Tokens of the evenly spaced images on which a search over thresholds begins."""


def calibrate(
    entropy: Float[np.ndarray, "B T"] | Float[Tensor, "B T"],
    p_avg: float,
    *,
    max_length: int | None,
    grid_width: int,
    row_boundary: bool = True,
) -> float:
    """The threshold in nats whose P_avg on `entropy` is nearest to the target, exactly.

    P_avg rises with E_Th in steps, one at each entropy that occurs. Of the two steps around the target the nearer is
    taken, the lower if both are as near; many equal entropies make the steps high, and a step far off is warned of.

    Args:
        entropy: nats, of the training images.
        p_avg: the target P_avg in tokens.

    Raises:
        InputError: no threshold reaches `p_avg` (the reachable range is named), or as `simulate`.
    """
    check_array(entropy)
    value = length_by_patches(entropy.shape[1])
    return _search(entropy, value, p_avg, "a mean patch length", "tokens", max_length, grid_width, row_boundary)


def calibrate_cost(
    entropy: Float[np.ndarray, "B T"] | Float[Tensor, "B T"],
    gmacs: float,
    *,
    cost: Callable[[Float[np.ndarray, " counts"]], Float[np.ndarray, " counts"]],
    max_length: int | None,
    grid_width: int,
    row_boundary: bool = True,
) -> float:
    """The threshold in nats whose mean cost per image on `entropy` is nearest to the target, exactly.

    Args:
        entropy: nats, of the training images.
        gmacs: the target in 1e9 multiply-accumulates per image.
        cost: from numbers of patches to GMACs per image of so many patches; must rise with them.

    Raises:
        InputError: no threshold reaches `gmacs` (the reachable range is named), or as `simulate`.
    """
    check_array(entropy)
    value = -cost(np.arange(entropy.shape[1] + 1.0))
    return _search(entropy, value, -gmacs, "a cost", "GMACs per image", max_length, grid_width, row_boundary)


def _search(
    entropy: Float[np.ndarray, "B T"] | Float[Tensor, "B T"],
    value: Float[np.ndarray, " counts"],
    target: float,
    what: str,
    unit: str,
    max_length: int | None,
    grid_width: int,
    row_boundary: bool,
) -> float:
    """The threshold at which the mean of `value[M]`, which falls with M, is nearest to `target`.

    Raising E_Th takes forced starts away, and ceil((a + b) / P_max) <= ceil(a / P_max) + ceil(b / P_max): each M can
    only fall, so the mean only rises, and bisection finds the one place where it crosses the target. It runs over the
    floating-point numbers of the stored type themselves, in their order, so it ends at an entropy that occurs, without
    sorting them. A part of the images says where to look first; all images decide.
    """
    dtype = on_host(entropy[:1]).dtype.newbyteorder("=")

    def mean_at(some: Float[np.ndarray, "N T"] | Float[Tensor, "N T"], place: int) -> float:
        threshold = _ordinal_to_float(place, dtype)
        cells = simulate(
            some,
            thresholds=[threshold],
            max_lengths=[max_length],
            grid_width=grid_width,
            row_boundary=row_boundary,
        )
        return cells[threshold, max_length].expectation(value)

    def first_at_target(some: Float[np.ndarray, "N T"] | Float[Tensor, "N T"], low: int, high: int) -> int:
        """The first place with the target reached, given that it is not at `low` and is at `high`."""
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if mean_at(some, middle) >= target else (middle, high)
        return high

    def distance(step: tuple[float, int]) -> float:
        return abs(step[0] - target)

    lowest, highest = _finite_range(entropy)
    low, high = _float_to_ordinal(lowest, dtype) - 1, _float_to_ordinal(highest, dtype)
    ends = mean_at(entropy, low), mean_at(entropy, high)
    if not ends[0] <= target <= ends[1]:
        raise _unreachable(target, ends, what, unit, max_length, row_boundary)
    if target == ends[0]:
        return _ordinal_to_float(low, dtype)
    every = -(-entropy.shape[0] * entropy.shape[1] // SAMPLE)
    if every > 1:
        part = entropy[::every]
        if mean_at(part, low) < target <= mean_at(part, high):
            low, high = _bracket(lambda at: mean_at(entropy, at) >= target, first_at_target(part, low, high), low, high)
    high = first_at_target(entropy, low, high)
    places = [high - 1, high]
    (nearest, place), (other, _) = sorted(((mean_at(entropy, place), place) for place in places), key=distance)
    _warn_if_far(target, nearest, other, unit)
    return _ordinal_to_float(place, dtype)


def _unreachable(
    target: float, ends: tuple[float, float], what: str, unit: str, max_length: int | None, row_boundary: bool
) -> InputError:
    sign = 1 if ends[1] > 0 else -1  # costs are searched for as negative numbers
    reachable = sorted(sign * end for end in ends)
    return InputError(
        f"no threshold gives {what} of {sign * target:g} {unit} on these entropies: with max_length {max_length} "
        f"and row_boundary {str(row_boundary).lower()} they reach from {reachable[0]:.4f} to {reachable[1]:.4f}; "
        "choose a target in that range, or change max_length or row_boundary"
    )


def _warn_if_far(target: float, nearest: float, other: float, unit: str) -> None:
    if abs(nearest - target) > FAR * abs(target):
        print(
            f"warning: {abs(target):g} {unit} are wanted, and {abs(nearest):.4f} is the nearest that a threshold gives "
            f"on these entropies, many of which are equal (the next is {abs(other):.4f}): look at them, or choose "
            "another target",
            file=sys.stderr,
        )


def _bracket(reached: Callable[[int], bool], guess: int, low: int, high: int) -> tuple[int, int]:
    """A narrow (low, high) with the target reached at its high end only, found in doubling steps from `guess`."""
    step = 64
    while high - low > 1:
        if reached(guess):
            high, guess = guess, guess - step
        else:
            low, guess = guess, guess + step
        if not low < guess < high:
            break
        step *= 2
    return low, high


def _finite_range(entropy: Float[np.ndarray, "B T"] | Float[Tensor, "B T"]) -> tuple[float, float]:
    """The least and the greatest finite entropy (0, 0 if there is none)."""
    lowest, highest = math.inf, -math.inf
    for _, chunk in host_chunks(entropy):
        finite = np.isfinite(chunk)
        lowest = min(lowest, float(np.min(chunk, where=finite, initial=np.inf)))
        highest = max(highest, float(np.max(chunk, where=finite, initial=-np.inf)))
    return (lowest, highest) if lowest <= highest else (0.0, 0.0)


def _float_to_ordinal(number: float, dtype: np.dtype) -> int:
    """The place of a finite `number` among all numbers of `dtype` in rising order, zero being at 0."""
    size = dtype.itemsize
    place = int(np.abs(dtype.type(number)).view(f"i{size}"))
    return -place if number < 0 else place


def _ordinal_to_float(place: int, dtype: np.dtype) -> float:
    """The number of `dtype` at a place: the inverse of `_float_to_ordinal`."""
    size = dtype.itemsize
    number = float(np.array(abs(place), f"i{size}").view(dtype))
    return -number if place < 0 else number
