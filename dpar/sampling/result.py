"""The results of sampling: a token of every image of a batch, and whole images."""

from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor


class Step(NamedTuple):
    """One token of every image of a batch."""

    entropy: Float[Tensor, " B"] | None  # e_t in nats; None where nothing asks for it
    opens: Bool[Tensor, " B"]  # whether x_t begins a patch
    logits: Float[Tensor, "B V"]  # after guidance, before temperature and truncation
    tokens: Int[Tensor, " B"]  # x_t


class SampleResult(NamedTuple):
    """A batch of drawn images, and where their patches began (every token, for a model without patches)."""

    tokens: Int[Tensor, "B T"]
    starts: Bool[Tensor, "B T"]
    entropy: Float[Tensor, "B T"] | None
