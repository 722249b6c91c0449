"""From logits to a token: classifier-free guidance, temperature, top-k, top-p, the draw (Section 4.1)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dpar.errors import InputError
from dpar.experiment.settings import FARTHEST, EntropyPrecision

# The allowed range of the settings of `truncated`: from the first number to the second.
CHOICES = {
    "temperature": (1 / FARTHEST, FARTHEST, "a number above 0, from 0.000001 to 1,000,000"),
    "top_k": (0, float("inf"), "a whole number, 0 for all codes"),
    "top_p": (math.ulp(0.0), 1, "a probability above 0, up to 1 for all codes"),
}


@dataclass(frozen=True)
class DrawSettings:
    """Settings for drawing codes from the logits of a model.

    Attributes:
        cfg_scale: s in u + s (c - u); 1 runs the class alone, 0 the null class alone, anything else both.
        cfg_interval: the shares of the sequence between which `cfg_scale` holds: x_t is guided iff t / T lies from the
            first to below the second. Outside, the class alone decides; after it the null class is no longer run.
        temperature: divides the logits.
        top_k: largest logits to draw from; 0 = all.
        top_p: least probability to draw from, largest codes first; 1 = all.
        compile: whether the steps run in compiled code, for which the first batch waits. Logits round differently, so
            that an image may change where two codes are nearly tied.
        entropy_precision: of the products of the entropy model; `bfloat16` are its weights already.

    Raises:
        InputError: a setting is out of range.
    """

    cfg_scale: float
    cfg_interval: tuple[float, float] = (0.0, 1.0)
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    compile: bool = False  # as PyTorch and the settings call it
    entropy_precision: EntropyPrecision = "float32"

    def __post_init__(self) -> None:
        if not 0 <= self.cfg_scale <= FARTHEST:
            raise InputError(
                f"the guidance scale is {self.cfg_scale}; expected 0 (no class), 1 (no guidance) or more, "
                "up to 1,000,000"
            )
        first, last = self.cfg_interval
        if not 0 <= first < last <= 1:
            raise InputError(
                f"guidance from {first} to {last} is no part of the sequence; expected two rising shares between 0 "
                "(its beginning) and 1 (its end)"
            )
        for name, (least, most, expected) in CHOICES.items():
            if not least <= (value := getattr(self, name)) <= most:
                raise InputError(f"{name} is {value}; expected {expected}")

    def truncated(self, logits: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        """The logits to draw from: divided by the temperature, -inf outside of `top_k` and `top_p`."""
        return truncated(logits, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)


def guidance_scales(tokens: int, cfg_scale: float, cfg_interval: tuple[float, float]) -> list[float]:
    """The s of each token: `cfg_scale` from one share of the sequence to the other, 1 (the class alone) outside."""
    first, last = cfg_interval
    return [cfg_scale if first <= t / tokens < last else 1.0 for t in range(tokens)]


def branch_labels(labels: Int[Tensor, " B"], null: int, scales: Sequence[float]) -> Int[Tensor, " R"]:
    """The labels that must be run to guide by `scales`: the class, the null class, or the one after the other."""
    nothing = torch.full_like(labels, null)
    if all(scale == 1 for scale in scales):
        return labels
    return nothing if all(scale == 0 for scale in scales) else torch.cat([labels, nothing])


def guided_tokens(scales: Sequence[float]) -> int:
    """The number of tokens, from the first, at which both branches are run: up to the last guided one, or 0."""
    one_branch = set(scales) in ({0}, {1})
    return 0 if one_branch else max(t + 1 for t, scale in enumerate(scales) if scale != 1)


def guided(logits: Float[Tensor, "R V"], batch: int, scale: float) -> Float[Tensor, "B V"]:
    """u + s (c - u) of two branches, or the logits of the only one.

    Args:
        batch: images (B); R is B or twice that.
    """
    if len(logits) == batch:
        return logits
    conditional, unconditional = logits.split(batch)
    return conditional if scale == 1 else unconditional + scale * (conditional - unconditional)


def truncated(logits: Float[Tensor, "B V"], *, temperature: float, top_k: int, top_p: float) -> Float[Tensor, "B V"]:
    """Logits over `temperature`, then -inf outside the `top_k` largest (0 = off), then outside the nucleus `top_p`.

    The nucleus is the fewest codes whose probabilities sum to at least `top_p` (1 = off). Codes that tie with the last
    one of the `top_k` stay.
    """
    logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        probabilities, order = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
        before, least = probabilities.cumsum(-1) - probabilities, torch.finfo(probabilities.dtype).tiny
        outside = torch.empty_like(before, dtype=torch.bool).scatter_(-1, order, before >= max(top_p, least))
        logits = logits.masked_fill(outside, -torch.inf)
    return logits


def gumbel_argmax(logits: Float[Tensor, "B V"], noise: Float[Tensor, "B V"]) -> Int[Tensor, " B"]:
    """One code per image from softmax(logits), decided by its Gumbel noise."""
    return (logits + noise).argmax(-1)
