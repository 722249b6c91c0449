"""How uncertain the entropy model is about the next token (Section 3.2.1, Eq. 3)."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dpar.errors import InputError
from dpar.model.llamagen import LlamaGen


def next_token_entropy(logits: Float[Tensor, "... V"]) -> Float[Tensor, "..."]:
    """Entropy in nats of softmax(logits), computed in fp32 or wider (Eq. 3)."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return torch.special.entr(logits.softmax(-1, dtype=dtype)).sum(-1)


def token_entropies(
    model: LlamaGen, tokens: Int[Tensor, "B T"], kind: Literal["unconditional", "null_class"]
) -> Float[Tensor, "B T"]:
    """e_0 = +inf and e_i in nats of the model's prediction of x_i from x_<i, each image by itself (Eq. 3).

    Args:
        model: in eval mode.
        tokens: codes of whole images.
        kind: `unconditional` for a model without a class token, `null_class` for a class-conditional one that is asked
            through its null class.

    Raises:
        InputError: the model is of the other kind.
    """
    if (kind == "unconditional") != (model.config.num_classes is None):
        found = "no class token" if model.config.num_classes is None else f"{model.config.num_classes} classes"
        raise InputError(f"entropy_model.kind is {kind!r}, but the model has {found}; set the kind that fits the model")
    if kind == "unconditional":
        logits = model(tokens)
    else:
        logits = model(tokens, tokens.new_full((len(tokens),), model.null_label))[:, 1:]
    entropy = next_token_entropy(logits)
    return torch.cat((entropy.new_full((len(tokens), 1), torch.inf), entropy), 1)
