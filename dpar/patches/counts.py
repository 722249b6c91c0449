"""Numbers and lengths of patches under many settings, without a model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dpar.errors import InputError
from dpar.patches.rule import (
    CHUNK,
    PatchRule,
    check_array,
    check_rule,
    check_threshold,
    forced_starts,
    host_chunks,
    on_host,
    static_starts,
)


@dataclass(frozen=True)
class PatchCounts:
    """Histogram of patches per image: `histogram[m]` images of `len(histogram) - 1` tokens have m."""

    histogram: Int[np.ndarray, " counts"]

    @classmethod
    def of(cls, starts: Bool[np.ndarray, "B T"] | Bool[Tensor, "B T"]) -> "PatchCounts":
        """The counts of images whose patches begin at `starts`."""
        patches = on_host(starts.sum(1))
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
        return self.expectation(length_by_patches(self.tokens))

    @cached_property
    def mean(self) -> float:
        """E[M] in patches per image, Table 2's steps."""
        return self.expectation(np.arange(self.tokens + 1.0))

    def percentile(self, q: int) -> int:
        """The least number of patches that at least `q` percent of the images do not exceed."""
        return int(np.searchsorted(self.histogram.cumsum(), max(1, math.ceil(self.images * q / 100))))


def length_by_patches(tokens: int) -> Float[np.ndarray, " counts"]:
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
    check_array(entropy)
    images, tokens = entropy.shape
    if images == 0:
        raise InputError("there are no entropies (0 images); score some codes first")
    thresholds, max_lengths = list(dict.fromkeys(thresholds)), list(dict.fromkeys(max_lengths))
    for max_length in max_lengths:
        check_rule(tokens, max_length, grid_width)
    for threshold in thresholds:
        check_threshold(threshold)
    forced = np.tile(forced_starts(np.arange(tokens), grid_width, row_boundary), max(1, CHUNK // tokens))
    patches_of_run = {  # of n tokens between forced starts
        max_length: -(-np.arange(tokens + 1) // (max_length or tokens)).astype(np.int32) for max_length in max_lengths
    }
    histograms = {
        (threshold, max_length): np.zeros(tokens + 1, np.int64)
        for threshold in thresholds
        for max_length in max_lengths
    }
    for _, chunk in host_chunks(entropy):
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
