"""From logits to a token: classifier-free guidance, temperature, top-k, top-p, the draw (Section 4.1)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

# What is allowed of the settings of `truncated`: more than the first number, up to the second.
CHOICES = {
    "temperature": (0, float("inf"), "a number above 0"),
    "top_k": (-1, float("inf"), "a whole number, 0 for all codes"),
    "top_p": (0, 1, "a probability above 0, up to 1 for all codes"),
}


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
    """At how many tokens, from the first, both branches are run: up to the last one that is guided, or at none."""
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
        before = probabilities.cumsum(-1) - probabilities
        outside = torch.empty_like(before, dtype=torch.bool).scatter_(-1, order, before >= top_p)
        logits = logits.masked_fill(outside, -torch.inf)
    return logits


def drawn(logits: Float[Tensor, "B V"], noise: Float[Tensor, "B V"]) -> Int[Tensor, " B"]:
    """One code an image from softmax(logits), decided by its Gumbel noise."""
    return (logits + noise).argmax(-1)
