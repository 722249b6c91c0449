"""Where patches begin and end (Section 3.2.1, Algorithm 3), how many there are, and which E_Th gives how many.

A patch opens at every token that must open one (the first two tokens, row starts, entropy above E_Th) and, between two
of those, at every P_max-th token. So an image's patches follow from the distances between the forced starts alone: that
makes the rule a running maximum instead of a loop, and the number of patches under any (E_Th, P_max) countable without
a model.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, overload

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dpar.config import Patchify
from dpar.errors import InputError

CHUNK = 2**18
"""Tokens that the simulator looks at together; their entropies fill about the cache of one core."""

SAMPLE = 2**22
"""Tokens of the evenly spaced images on which a search over thresholds begins."""


def _forced(position: Any, grid_width: int, row_boundary: bool) -> Any:
    """Whether the token at `position` opens a patch whatever its entropy (Algorithm 3, lines 3, 4 and 7)."""
    return (position <= 1) | (row_boundary & (position % grid_width == 0))


def _check_rule(tokens: int, max_length: int | None, grid_width: int) -> None:
    if max_length is not None and (max_length < 1 or max_length % 1):
        raise InputError(f"max_length is {max_length}; give the most tokens a patch may have (1, 2, ...), or none")
    if grid_width < 1 or tokens < 1 or tokens % grid_width:
        raise InputError(
            f"the entropies have {tokens} tokens per image, which are not whole rows of {grid_width}; "
            "check the grid width"
        )


def _check_threshold(threshold: float) -> None:
    if math.isnan(threshold):
        raise InputError("the threshold is NaN; give a number of nats (inf: no patch opens because of its entropy)")


def _check_array(entropy: np.ndarray | Tensor) -> None:
    if entropy.ndim != 2:
        raise InputError(
            f"the entropies have the shape {tuple(entropy.shape)}; expected (images, tokens), in nats, raster order"
        )
    dtype = entropy.dtype.name if isinstance(entropy, np.ndarray) else str(entropy.dtype).removeprefix("torch.")
    if dtype not in ("float16", "float32", "float64"):
        raise InputError(f"the entropies are of type {dtype}; expected floating-point nats, such as float32")


def _check_no_nan(entropy: np.ndarray | Tensor, first_image: int = 0) -> None:
    bad = entropy.isnan() if isinstance(entropy, Tensor) else np.isnan(entropy)
    if bad.any():
        image, token = (int(i) for i in torch.as_tensor(bad).nonzero()[0])
        raise InputError(
            f"the entropy of token {token} of image {first_image + image} is NaN; "
            "score the codes again with an entropy model whose logits are finite"
        )


def _on_host(array: np.ndarray | Tensor) -> np.ndarray:
    return array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)


def _chunks(entropy: Float[np.ndarray, "B T"] | Float[Tensor, "B T"]) -> Iterator[tuple[int, Float[np.ndarray, "N T"]]]:
    """A few images at a time, free of NaN, as float32 or wider, with the number of the first of them."""
    rows = max(1, CHUNK // entropy.shape[1])
    for first in range(0, len(entropy), rows):
        chunk = _on_host(entropy[first : first + rows])
        _check_no_nan(chunk, first)
        # half precision is widened: E_Th would be rounded to it, by up to 0.004 nats
        yield first, np.require(chunk, np.promote_types(chunk.dtype, np.float32), ["C", "W"])


@overload
def patch_starts(
    entropy: Float[Tensor, "*B T"],
    *,
    threshold: float,
    max_length: int | None,
    grid_width: int,
    row_boundary: bool = True,
) -> Bool[Tensor, "*B T"]: ...
@overload
def patch_starts(
    entropy: Float[np.ndarray, "*B T"],
    *,
    threshold: float,
    max_length: int | None,
    grid_width: int,
    row_boundary: bool = True,
) -> Bool[np.ndarray, "*B T"]: ...
def patch_starts(
    entropy: Any, *, threshold: float, max_length: int | None, grid_width: int, row_boundary: bool = True
) -> Any:
    """Whether each token opens a patch (Algorithm 3), an array or a tensor as `entropy` is.

    Args:
        entropy: nats, of one image or of any number; entry t belongs to x_t. The first two of an image do not matter.
        threshold: E_Th in nats, rounded to the precision of `entropy`, of float16 to float32; infinities are allowed.
        max_length: P_max in tokens; None = no limit.
        grid_width: tokens in a row of the image.
        row_boundary: whether each row begins a patch.

    Raises:
        InputError: an entropy or the threshold is NaN, `entropy` is not made of rows, or `max_length` is below 1.
    """
    if entropy.ndim != 2:
        rule = {"threshold": threshold, "max_length": max_length, "grid_width": grid_width}
        images = entropy.reshape(math.prod(entropy.shape[:-1]), *entropy.shape[-1:])
        return patch_starts(images, **rule, row_boundary=row_boundary).reshape(entropy.shape)
    _check_array(entropy)
    _check_rule(entropy.shape[1], max_length, grid_width)
    _check_threshold(threshold)
    if isinstance(entropy, Tensor):
        _check_no_nan(entropy)
        entropy = entropy.to(torch.promote_types(entropy.dtype, torch.float32))
        return _starts(entropy, threshold, max_length, grid_width, row_boundary)
    starts = np.empty(entropy.shape, bool)
    for first, chunk in _chunks(entropy):
        part = _starts(torch.from_numpy(chunk), threshold, max_length, grid_width, row_boundary)
        starts[first : first + len(chunk)] = part.numpy()
    return starts


def _starts(
    entropy: Float[Tensor, "B T"], threshold: float, max_length: int | None, grid_width: int, row_boundary: bool
) -> Bool[Tensor, "B T"]:
    positions = torch.arange(entropy.shape[1], device=entropy.device)
    forced = (entropy > threshold) | _forced(positions, grid_width, row_boundary)
    if max_length is None:
        return forced
    last_forced = torch.where(forced, positions, 0).cummax(dim=1).values
    return (positions - last_forced) % max_length == 0


def static_starts(
    batch: int, length: int, patch_length: float, device: torch.device | str | None = None
) -> Bool[Tensor, "B T"]:
    """Starts of patches of one length, not necessarily whole: token t belongs to patch floor(t / P) (Table 3, row 1).

    Args:
        length: tokens per image.
        patch_length: P in tokens, 1 or more; 1.81 gives patches of 1 and of 2 tokens. Taken as the decimal number that
            it is written as: floor(33 / 1.1) is 30, though 33 / 1.1 is less than that in floating point.

    Raises:
        InputError: `patch_length` is below 1 or not finite.
    """
    if not 1 <= patch_length < math.inf:
        raise InputError(f"a static patch length of {patch_length} tokens is impossible; give a number of 1 or more")
    tokens, patches = Fraction(str(patch_length)).as_integer_ratio()
    patch = [t * patches // tokens for t in range(length)]
    return (torch.tensor(patch).diff(prepend=torch.tensor([-1])) > 0).to(device).repeat(batch, 1)


@dataclass(frozen=True)
class PatchRule:
    """Where patches begin, resolved: what training, likelihoods, sampling and counting take.

    Attributes:
        grid_width: tokens in a row of the image.
        threshold: E_Th in nats, rounded to the precision of the entropies; infinities are allowed. None for static
            patches.
        max_length: P_max in tokens; None = no limit.
        row_boundary: whether each row begins a patch.
        static_length: P in tokens, of static patches, for which nothing else counts; None for dynamic ones.
    """

    grid_width: int
    threshold: float | None = None
    max_length: int | None = None
    row_boundary: bool = True
    static_length: float | None = None

    def __post_init__(self) -> None:
        assert (self.threshold is None) != (self.static_length is None), "dynamic patches need the threshold in nats"

    @classmethod
    def of(cls, patchify: Patchify, threshold: float | None, grid_width: int) -> "PatchRule":
        """The rule that settings mean.

        Args:
            threshold: E_Th in nats, as `patchify` states it or as its `p_avg` was calibrated; None for static patches.
        """
        if patchify.is_dynamic:
            return cls(grid_width, threshold, patchify.max_length, patchify.row_boundary)
        return cls(grid_width, static_length=patchify.p_avg)

    @classmethod
    def of_model(cls, described: Mapping[str, Any]) -> "PatchRule | None":
        """The rule that a trained model was made with, from its folder's config.json; None for one without patches."""
        provenance = described["provenance"]
        if provenance.get("patchify") is None:
            return None
        patchify = Patchify.model_validate(provenance["patchify"])
        return cls.of(patchify, provenance["threshold"], described["model"]["grid"][1])

    @property
    def is_dynamic(self) -> bool:
        """Whether entropies decide where patches begin."""
        return self.static_length is None

    def forced(self, position: Any) -> Any:
        """Whether the tokens at `position` open a patch whatever their entropy (Algorithm 3, lines 3, 4 and 7)."""
        return _forced(position, self.grid_width, self.row_boundary)

    def starts(self, entropy: Float[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
        """Whether each token opens a patch; of static patches only the shape of `entropy` counts.

        Raises:
            InputError: as `patch_starts` or `static_starts`.
        """
        if self.static_length is not None:
            return static_starts(len(entropy), entropy.shape[1], self.static_length, entropy.device)
        assert self.threshold is not None
        return patch_starts(
            entropy,
            threshold=self.threshold,
            max_length=self.max_length,
            grid_width=self.grid_width,
            row_boundary=self.row_boundary,
        )

    def opens(self, entropy_t: Float[Tensor, " B"], length: Int[Tensor, " B"], position: int) -> Bool[Tensor, " B"]:
        """Whether token `position` opens a patch in each image: `starts` one step at a time, as sampling needs it.

        Args:
            entropy_t: e_t in nats; the rule is a dynamic one.
            length: tokens that the current patch of each image already has.
        """
        assert self.threshold is not None
        if self.forced(position):
            return torch.ones_like(length, dtype=torch.bool)
        opens = entropy_t > self.threshold
        return opens if self.max_length is None else opens | (length >= self.max_length)


@dataclass(frozen=True)
class Agreement:
    """How well the patches of one network's entropies are those of another's, where no rule decides for both.

    The first two tokens, and those that begin a row where rows begin patches, are left out: all networks agree there.
    """

    tokens: int  # that were compared
    both: int  # starts in both
    expected: int  # starts in the one that is copied
    found: int  # starts in the copy

    @classmethod
    def of(cls, expected: Bool[Tensor, "B T"], found: Bool[Tensor, "B T"], rule: PatchRule) -> "Agreement":
        """The agreement of `found` with `expected` over all images, both under `rule` but for the threshold."""
        free = ~rule.forced(torch.arange(expected.shape[1], device=expected.device))
        expected, found = expected[:, free], found[:, free]
        counts = ((expected & found).sum(), expected.sum(), found.sum())
        return cls(expected.numel(), *(int(count) for count in counts))

    @property
    def share(self) -> float:
        """The share of tokens that open a patch in both or in neither."""
        return 1 - (self.expected + self.found - 2 * self.both) / self.tokens

    @property
    def chance(self) -> float:
        """What `share` would be if as many starts lay anywhere."""
        p, q = self.expected / self.tokens, self.found / self.tokens
        return p * q + (1 - p) * (1 - q)

    @property
    def precision(self) -> float | None:
        """The share of the copy's starts that are starts; None if it has none."""
        return self.both / self.found if self.found else None

    @property
    def recall(self) -> float | None:
        """The share of starts that the copy has; None if there are none."""
        return self.both / self.expected if self.expected else None


def patch_ids(starts: Bool[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """The number of the patch, from 0 in each image, that each token belongs to."""
    return starts.cumsum(dim=1) - 1


@dataclass(frozen=True)
class PatchCounts:
    """How many images have how many patches: `histogram[m]` images of `len(histogram) - 1` tokens have m."""

    histogram: Int[np.ndarray, " counts"]

    @classmethod
    def of(cls, starts: Bool[np.ndarray, "B T"] | Bool[Tensor, "B T"]) -> "PatchCounts":
        """The counts of images whose patches begin at `starts`."""
        patches = _on_host(starts.sum(1))
        return cls(np.bincount(patches, minlength=starts.shape[1] + 1))

    @classmethod
    def under(cls, rule: PatchRule, entropy: Float[np.ndarray, "B T"] | Float[Tensor, "B T"]) -> "PatchCounts":
        """The counts that `rule` gives images of these entropies in nats, exactly.

        Raises:
            InputError: as `simulate`.
        """
        if rule.static_length is not None:
            one = cls.of(static_starts(1, entropy.shape[1], rule.static_length))
            return cls(one.histogram * len(entropy))
        assert rule.threshold is not None
        ((_, counts),) = simulate(
            entropy,
            thresholds=[rule.threshold],
            max_lengths=[rule.max_length],
            grid_width=rule.grid_width,
            row_boundary=rule.row_boundary,
        ).items()
        return counts

    @property
    def tokens(self) -> int:
        """Tokens per image (T)."""
        return len(self.histogram) - 1

    @property
    def images(self) -> int:
        """Images that were counted."""
        return int(self.histogram.sum())

    def expectation(self, value: Float[np.ndarray, " counts"]) -> float:
        """The mean over images of `value[m]`, m being an image's patches."""
        present = self.histogram.nonzero()[0]
        return math.fsum(self.histogram[present] * value[present]) / self.images

    @cached_property
    def mean_patch_length(self) -> float:
        """P_avg = E[T / M] in tokens (Section 3.2.1)."""
        return self.expectation(_patch_length(self.tokens))

    @cached_property
    def mean(self) -> float:
        """E[M] in patches per image, Table 2's steps."""
        return self.expectation(np.arange(self.tokens + 1.0))

    def percentile(self, q: int) -> int:
        """The least number of patches that at least `q` percent of the images do not exceed."""
        return int(np.searchsorted(self.histogram.cumsum(), max(1, math.ceil(self.images * q / 100))))


def _patch_length(tokens: int) -> Float[np.ndarray, " counts"]:
    """T / m for m = 0 .. T patches (0 for the impossible m = 0)."""
    return tokens / np.maximum(np.arange(tokens + 1.0), 1) * (np.arange(tokens + 1) > 0)


def simulate(
    entropy: Float[np.ndarray, "B T"] | Float[Tensor, "B T"],
    *,
    thresholds: Sequence[float],
    max_lengths: Sequence[int | None],
    grid_width: int,
    row_boundary: bool = True,
) -> dict[tuple[float, int | None], PatchCounts]:
    """The counts of patches under every (E_Th, P_max), exactly, in one pass over stored entropies.

    Five thresholds times six maximum lengths over 100,000 images of 256 tokens take 2 seconds of one CPU core.

    Args:
        entropy: nats; may be memory-mapped and larger than memory.
        thresholds: E_Th in nats.
        max_lengths: P_max in tokens; None = no limit.

    Raises:
        InputError: as `patch_starts`, or there is no image.
    """
    _check_array(entropy)
    images, tokens = entropy.shape
    if images == 0:
        raise InputError("there are no entropies (0 images); score some codes first")
    thresholds, max_lengths = list(dict.fromkeys(thresholds)), list(dict.fromkeys(max_lengths))
    for max_length in max_lengths:
        _check_rule(tokens, max_length, grid_width)
    for threshold in thresholds:
        _check_threshold(threshold)
    forced = np.tile(_forced(np.arange(tokens), grid_width, row_boundary), max(1, CHUNK // tokens))
    patches_of_run = {  # of n tokens between forced starts
        max_length: -(-np.arange(tokens + 1) // (max_length or tokens)).astype(np.int32) for max_length in max_lengths
    }
    histograms = {
        (threshold, max_length): np.zeros(tokens + 1, np.int64)
        for threshold in thresholds
        for max_length in max_lengths
    }
    for _, chunk in _chunks(entropy):
        for threshold in thresholds:
            starts = chunk.ravel() > threshold
            starts |= forced[: chunk.size]
            runs = np.diff(starts.nonzero()[0], append=chunk.size)  # none reaches into the next image: t = 0 is forced
            first_run = np.zeros(len(chunk), np.int64)
            np.cumsum(starts.reshape(chunk.shape).sum(1)[:-1], out=first_run[1:])
            for max_length in max_lengths:
                patches = np.add.reduceat(patches_of_run[max_length][runs], first_run)
                histograms[threshold, max_length] += np.bincount(patches, minlength=tokens + 1)
    return {cell: PatchCounts(histogram) for cell, histogram in histograms.items()}


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
    taken, the lower if both are as near; many equal entropies make the steps high.

    Args:
        entropy: nats, of the training images.
        p_avg: the target P_avg in tokens.

    Raises:
        InputError: no threshold reaches `p_avg` (the reachable range is named), or as `simulate`.
    """
    _check_array(entropy)
    value = _patch_length(entropy.shape[1])
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
    _check_array(entropy)
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
    dtype = _on_host(entropy[:1]).dtype.newbyteorder("=")

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

    lowest, highest = _finite_range(entropy)
    low, high = _float_to_ordinal(lowest, dtype) - 1, _float_to_ordinal(highest, dtype)
    ends = mean_at(entropy, low), mean_at(entropy, high)
    if not ends[0] <= target <= ends[1]:
        reachable = sorted(abs(end) for end in ends)
        raise InputError(
            f"no threshold gives {what} of {abs(target):g} {unit} on these entropies: with max_length {max_length} and "
            f"row_boundary {str(row_boundary).lower()} they reach from {reachable[0]:.4f} to {reachable[1]:.4f}; "
            "choose a target in that range, or change max_length or row_boundary"
        )
    if target == ends[0]:
        return _ordinal_to_float(low, dtype)
    every = -(-entropy.shape[0] * entropy.shape[1] // SAMPLE)
    if every > 1:
        part = entropy[::every]
        if mean_at(part, low) < target <= mean_at(part, high):
            low, high = _bracket(lambda at: mean_at(entropy, at) >= target, first_at_target(part, low, high), low, high)
    high = first_at_target(entropy, low, high)
    above, below = mean_at(entropy, high) - target, target - mean_at(entropy, high - 1)
    return _ordinal_to_float(high if above < below else high - 1, dtype)


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
    for _, chunk in _chunks(entropy):
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
