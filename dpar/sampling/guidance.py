"""From logits to a token: classifier-free guidance, temperature, top-k, top-p, the draw (Section 4.1)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def branch_labels(labels: Int[Tensor, " B"], null: int, cfg_scale: float) -> Int[Tensor, " R"]:
    """The labels that must be run to guide by `cfg_scale`: the class, the null class, or the one after the other."""
    nothing = torch.full_like(labels, null)
    if cfg_scale == 1:
        return labels
    return nothing if cfg_scale == 0 else torch.cat([labels, nothing])


def guided(logits: Float[Tensor, "R V"], cfg_scale: float) -> Float[Tensor, "B V"]:
    """u + s (c - u) of the branches that `branch_labels` asked for."""
    if cfg_scale in (0, 1):
        return logits
    conditional, unconditional = logits.chunk(2)
    return unconditional + cfg_scale * (conditional - unconditional)


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
