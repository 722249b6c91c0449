"""Where patches begin and end (Section 3.2.1, Algorithm 3), how many there are, and which E_Th gives how many.

A patch opens at every token that must open one (the first two tokens, row starts, entropy above E_Th) and, between two
of those, at every P_max-th token. So an image's patches follow from the distances between the forced starts alone: that
makes the rule a running maximum instead of a loop, and the number of patches under any (E_Th, P_max) countable without
a model.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, overload

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dpar.errors import InputError
from dpar.experiment.cells import threshold_of
from dpar.experiment.settings import LONGEST_PATCH, Patchify

CHUNK = 2**18
"""Tokens that the simulator looks at together; their entropies fill about the cache of one core."""


def forced_starts(position: Any, grid_width: int, row_boundary: bool) -> Any:
    """Whether the token at `position` opens a patch whatever its entropy (Algorithm 3, lines 3, 4 and 7)."""
    return (position <= 1) | (row_boundary & (position % grid_width == 0))


def check_rule(tokens: int, max_length: int | None, grid_width: int) -> None:
    """Raises `InputError` for a P_max, or a width of the grid, that no image of so many tokens can have."""
    check_length(max_length)
    if grid_width < 1 or tokens < 1 or tokens % grid_width:
        raise InputError(
            f"the entropies have {tokens} tokens per image, which are not whole rows of {grid_width}; "
            "check the grid width"
        )


def check_length(max_length: int | None) -> None:
    """Raises `InputError` for a P_max that is no number of tokens."""
    if max_length is not None and (not 1 <= max_length <= LONGEST_PATCH or max_length % 1):
        raise InputError(f"max_length is {max_length}; give the most tokens a patch may have (1, 2, ...), or none")


def check_threshold(threshold: float) -> None:
    """Raises `InputError` for a threshold that is NaN."""
    if math.isnan(threshold):
        raise InputError("the threshold is NaN; give a number of nats (inf: no patch opens because of its entropy)")


def check_array(entropy: np.ndarray | Tensor) -> None:
    """Raises `InputError` for entropies that are not floats of shape (images, tokens)."""
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


def on_host(array: np.ndarray | Tensor) -> np.ndarray:
    """The array in NumPy, moved from the device if need be."""
    return array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)


def host_chunks(
    entropy: Float[np.ndarray, "B T"] | Float[Tensor, "B T"],
) -> Iterator[tuple[int, Float[np.ndarray, "N T"]]]:
    """A few images at a time, free of NaN, as float32 or wider, with the number of the first of them."""
    rows = max(1, CHUNK // entropy.shape[1])
    for first in range(0, len(entropy), rows):
        chunk = on_host(entropy[first : first + rows])
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
    check_array(entropy)
    check_rule(entropy.shape[1], max_length, grid_width)
    check_threshold(threshold)
    if isinstance(entropy, Tensor):
        _check_no_nan(entropy)
        entropy = entropy.to(torch.promote_types(entropy.dtype, torch.float32))
        return _starts(entropy, threshold, max_length, grid_width, row_boundary)
    starts = np.empty(entropy.shape, bool)
    for first, chunk in host_chunks(entropy):
        part = _starts(torch.from_numpy(chunk), threshold, max_length, grid_width, row_boundary)
        starts[first : first + len(chunk)] = part.numpy()
    return starts


def _starts(
    entropy: Float[Tensor, "B T"], threshold: float, max_length: int | None, grid_width: int, row_boundary: bool
) -> Bool[Tensor, "B T"]:
    positions = torch.arange(entropy.shape[1], device=entropy.device)
    forced = (entropy > threshold) | forced_starts(positions, grid_width, row_boundary)
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
    """The resolved patch rule, which training, likelihoods, sampling and counting take.

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
        check_length(self.max_length)
        if self.threshold is not None:
            check_threshold(self.threshold)

    @classmethod
    def of(cls, patchify: Patchify, threshold: float | None, grid_width: int) -> "PatchRule":
        """The rule of these settings.

        Args:
            threshold: E_Th in nats, as `patchify` states it or as its `p_avg` was calibrated; None for static patches.
        """
        if patchify.is_dynamic:
            return cls(grid_width, threshold, patchify.max_length, patchify.row_boundary)
        return cls(grid_width, static_length=patchify.p_avg)

    @classmethod
    def calibrated(cls, patchify: Patchify, thresholds: Mapping[str, Any], grid_width: int) -> "PatchRule":
        """The rule of these settings, with the results of calibrate_threshold where they ask for a mean patch length.

        Raises:
            InputError: no threshold was calibrated to it.
        """
        return cls.of(patchify, threshold_of(patchify, thresholds), grid_width)

    @classmethod
    def of_model(cls, described: Mapping[str, Any]) -> "PatchRule | None":
        """The rule that a trained model was made with, from its folder's config.json; None for one without patches.

        Raises:
            InputError: it is a DPAR that does not say where its patches begin.
        """
        provenance = described["provenance"]
        if provenance.get("patchify") is None:
            if described.get("kind") == "dpar":
                raise InputError(
                    "the config.json of this DPAR does not say where its patches begin (provenance.patchify): put back "
                    "the one that its training wrote, or export the model again"
                )
            return None
        patchify = Patchify.model_validate(provenance["patchify"])
        return cls.of(patchify, provenance["threshold"], described["model"]["grid"][1])

    @property
    def is_dynamic(self) -> bool:
        """Whether entropies decide where patches begin."""
        return self.static_length is None

    def forced(self, position: Any) -> Any:
        """Whether the tokens at `position` open a patch whatever their entropy (Algorithm 3, lines 3, 4 and 7)."""
        return forced_starts(position, self.grid_width, self.row_boundary)

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
        if self.forced(position):
            return torch.ones_like(length, dtype=torch.bool)
        return self.opens_unforced(entropy_t, length)

    def opens_unforced(self, entropy_t: Float[Tensor, " B"], length: Int[Tensor, " B"]) -> Bool[Tensor, " B"]:
        """`opens` at a token that need not open a patch."""
        assert self.threshold is not None
        opens = entropy_t > self.threshold
        return opens if self.max_length is None else opens | (length >= self.max_length)

    def longest(self, tokens: int) -> int:
        """The most tokens that a patch of an image of `tokens` can have."""
        if self.static_length is not None:
            return min(tokens, math.ceil(self.static_length))
        row = self.grid_width if self.row_boundary else tokens
        return min(tokens, row, self.max_length or tokens)


def patch_ids(starts: Bool[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """The number of the patch, from 0 in each image, that each token belongs to."""
    return starts.cumsum(dim=1) - 1
