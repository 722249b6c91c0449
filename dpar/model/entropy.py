"""Entropy of the next token under the entropy model (Section 3.2.1, Eq. 3)."""

from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dpar.device import tf32_products
from dpar.errors import InputError
from dpar.experiment.settings import EntropyKind, EntropyPrecision
from dpar.model.entropy_regressor import EntropyRegressor
from dpar.model.llamagen import LlamaGen


def next_token_entropy(logits: Float[Tensor, "... V"]) -> Float[Tensor, "..."]:
    """Entropy in nats of softmax(logits), computed in fp32 or wider (Eq. 3)."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return torch.special.entr(logits.softmax(-1, dtype=dtype)).sum(-1)


def entropy_from_outputs(model: LlamaGen, outputs: Float[Tensor, "... outputs"]) -> Float[Tensor, "..."]:
    """The entropy in nats from a network's outputs: of its logits, or the single output of a distilled gate."""
    return outputs.squeeze(-1) if isinstance(model, EntropyRegressor) else next_token_entropy(outputs)


def token_entropies(model: LlamaGen, tokens: Int[Tensor, "B T"], kind: EntropyKind) -> Float[Tensor, "B T"]:
    """e_0 = +inf and e_i in nats of the model's prediction of x_i from x_<i, each image by itself (Eq. 3).

    Args:
        model: in eval mode.
        tokens: codes of whole images.
        kind: `unconditional` for a model without a class token, `null_class` for a class-conditional one that is asked
            through its null class, `distilled` for one that gives the entropies themselves.

    Raises:
        InputError: the model is of another kind.
    """
    classes, distilled = model.config.num_classes, isinstance(model, EntropyRegressor)
    if kind != ("distilled" if distilled else "unconditional" if classes is None else "null_class"):
        found = "one output" if distilled else "no class token" if classes is None else f"{classes} classes"
        raise InputError(f"the entropy model's kind is {kind!r}, but it has {found}; set the kind that fits the model")
    if classes is None:
        outputs = model(tokens)
    else:
        outputs = model(tokens, tokens.new_full((len(tokens),), model.null_label))[:, 1:]
    entropy = entropy_from_outputs(model, outputs)
    return torch.cat((entropy.new_full((len(tokens), 1), torch.inf), entropy), 1)


def computed_precision(wanted: EntropyPrecision, device: torch.device) -> EntropyPrecision:
    """The precision that entropies get there: TF32 is a GPU's, products that ask for it elsewhere are float32."""
    return "float32" if wanted == "tf32" and device.type != "cuda" else wanted


def entropy_weights(model: LlamaGen, precision: EntropyPrecision) -> LlamaGen:
    """The entropy model, its weights rounded in place where that is its precision."""
    return model.bfloat16() if precision == "bfloat16" else model


def entropy_products(precision: EntropyPrecision, device: torch.device) -> AbstractContextManager:
    """A block in which its products have that precision."""
    return tf32_products(device) if precision == "tf32" else nullcontext()
