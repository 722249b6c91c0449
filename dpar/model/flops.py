"""Cost of a model per image (Table 8): multiply-accumulates by the paper's count and in full, and cache bytes.

One multiply-accumulate (MAC) is a multiplication and an addition. Table 8's "GFLOPs" are 1e9 MACs of the linear layers
in one forward pass, head included; attention products and the entropy model are left out. The full count adds the
products of attention as far as they are causal (position n meets n keys), and for sampling the entropy model and
classifier-free guidance. Embedding look-ups, norms, softmax, rotations, max-pooling and the tokenizer are in neither.

Deviation: Section 4.3 profiles 500 steps; here costs follow from the patches by a formula that is tested against a
count in the real modules.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from dpar.model.dpar import DPARConfig
from dpar.model.layers import hidden_width
from dpar.model.llamagen import LlamaGenConfig

# one number, or one for each image; an array of patches gives an array of costs
Number = int | float | Float[np.ndarray, "..."]

BACKWARD = 2
"""Cost of a backward pass in forward passes: a gradient for the inputs and one for the weights of each product."""


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates per image: of linear layers, and of attention's two products."""

    linear: Number
    attention: Number

    @property
    def total(self) -> Number:
        """Both together."""
        return self.linear + self.attention


def forward_parts(config: LlamaGenConfig | DPARConfig, patches: Number | None = None) -> dict[str, Macs]:
    """MACs of one forward pass on one image, by part of the model (Table 8's are the linear ones).

    Args:
        config: the model's sizes.
        patches: M, for DPAR; a mean is exact for linear layers, and for attention a lower bound close to the mean.
    """
    width, tokens = config.width, config.tokens
    head = width * config.outputs
    if isinstance(config, LlamaGenConfig):
        positions = _positions(config)
        return {"transformer": _blocks(width, config.layers, positions), "head": Macs(head * positions, 0)}
    assert patches is not None, "the cost of DPAR depends on the number of patches"
    encoder = _blocks(width, config.encoder_layers, tokens - 1)  # x_{T-1} is never an input
    square = width**2
    gathering = Macs(  # queries and outputs are patches, keys and values tokens, each in one patch
        config.encoder_layers * 2 * square * (patches + tokens - 1), config.encoder_layers * 2 * width * (tokens - 1)
    )
    decoder = _blocks(width, config.decoder_layers, tokens)
    return {
        "encoder": Macs(encoder.linear + gathering.linear, encoder.attention + gathering.attention),
        "patch_transformer": _blocks(width, config.layers, patches),
        "decoder": Macs(decoder.linear + config.decoder_layers * square * patches, decoder.attention),
        "head": Macs(head * tokens, 0),
    }


def _positions(config: LlamaGenConfig) -> int:
    """Positions that a LlamaGen computes: one for each token that it predicts."""
    return config.tokens if config.num_classes is not None else config.tokens - 1


def _blocks(width: int, layers: int, positions: Number) -> Macs:
    linear = 4 * width**2 + 3 * width * hidden_width(width)
    return Macs(layers * linear * positions, layers * width * positions * (positions + 1))


def forward_gmacs(config: LlamaGenConfig | DPARConfig, patches: Number | None = None) -> Number:
    """1e9 MACs of the linear layers in one forward pass on one image: the paper's "GFLOPs" (Table 8)."""
    return sum(part.linear for part in forward_parts(config, patches).values()) / 1e9


def full_gmacs(config: LlamaGenConfig | DPARConfig, patches: Number | None = None) -> Number:
    """1e9 MACs of one forward pass on one image, attention products counted."""
    return sum(part.total for part in forward_parts(config, patches).values()) / 1e9


def training_gmacs(config: LlamaGenConfig | DPARConfig, patches: Number | None = None) -> Number:
    """1e9 MACs of one training step per image, forward and backward, attention products counted.

    Entropies are stored beforehand: scoring an image costs one `full_gmacs` of the entropy model, once for all epochs.
    """
    return (1 + BACKWARD) * full_gmacs(config, patches)


def sampling_gmacs(
    config: LlamaGenConfig | DPARConfig,
    patches: Number | None = None,
    *,
    entropy_model: LlamaGenConfig | None = None,
    guided: float = 1.0,
    shared_encoder: bool = True,
    attention: bool = True,
) -> Number:
    """1e9 MACs of sampling one image with caches, each position computed once (Algorithm 2).

    Args:
        patches: M, for DPAR.
        entropy_model: sizes of the network that decides where patches open; None for LlamaGen and static patches.
        guided: the share of the tokens, from the first, at which a second branch without the class is computed; patches
            are taken to be spread evenly over them.
        shared_encoder: whether both branches use one encoder, which sees no class; False: the branches share nothing.
        attention: whether attention products are counted.
    """

    def macs(part: Macs, share: float = 1.0) -> Number:
        """Of the first `share` of the positions; each attends to all before it."""
        return part.linear * share + (part.attention * share**2 if attention else 0)

    parts = forward_parts(config, patches)
    total: Number = 0.0
    for name, part in parts.items():
        total = total + macs(part) + (0 if name == "encoder" and shared_encoder else macs(part, guided))
    if entropy_model is not None:
        total = total + sum(macs(part) for part in forward_parts(entropy_model).values())
    return total / 1e9


def kv_cache_bytes(
    config: LlamaGenConfig | DPARConfig,
    patches: Number | None = None,
    *,
    entropy_model: LlamaGenConfig | None = None,
    guided: bool = True,
) -> Number:
    """Bytes of keys and values of one finished image in all caches, in bfloat16.

    Args:
        patches: M, for DPAR.
        entropy_model: sizes of the network that decides where patches open; None for LlamaGen and static patches.
        guided: whether a second branch without the class is computed; the encoder and the entropy model see no class.
    """
    branches = 2 if guided else 1
    if isinstance(config, LlamaGenConfig):
        vectors: Number = config.width * config.layers * _positions(config) * branches
    else:
        assert patches is not None, "the cache of DPAR depends on the number of patches"
        shared = config.encoder_layers * (config.tokens - 1)
        vectors = config.width * (shared + branches * (config.layers * patches + config.decoder_layers * config.tokens))
    if entropy_model is not None:
        vectors = vectors + entropy_model.width * entropy_model.layers * _positions(entropy_model)
    return 2 * 2 * vectors  # keys and values of two bytes each


def count_linear_macs(model: nn.Module, *inputs: Any) -> int:
    """MACs that the linear layers carry out on `inputs`, counted while the model runs, be it on the meta device."""
    macs = 0

    def count(module: nn.Linear, _: Any, output: Tensor) -> None:
        nonlocal macs
        macs += output.numel() * module.in_features

    hooks = [module.register_forward_hook(count) for module in model.modules() if isinstance(module, nn.Linear)]
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return macs
