"""The computations of one step of the sampler, as functions of tensors alone, compiled as a whole.

At each token a batch passes through some hundreds of small operations, bound by call overhead where rows are few.
Compiled, a stack of layers is one call of fused loops between its matrix products.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch._dynamo import config as dynamo_config
from torch.fx.experimental import _config as fx_config

from dpar.device import try_compiler
from dpar.model.dpar import DPAR
from dpar.model.entropy import entropy_from_outputs
from dpar.model.layers import Attend
from dpar.model.llamagen import LlamaGen
from dpar.model.patch_decoder import PatchDecoderLayer
from dpar.model.patch_encoder import PatchEncoderLayer
from dpar.sampling.cache import LockstepSlot, RaggedSlots, cached_attention
from dpar.sampling.static_cache import StaticSlots, static_attention

Function = TypeVar("Function", bound=Callable[..., Any])

Entries = tuple[Sequence[Tensor], Sequence[Tensor]]
"""Keys and values of each layer of a stack, as their cache lays them out."""


@contextmanager
def compiling(device: torch.device) -> Iterator[None]:
    """A block in which `compiled` functions are called: equal sizes are not specialised to one symbol.

    Raises:
        InputError: nothing can be compiled here.
    """
    try_compiler(device)
    # a process may draw with many networks, whose sizes are constants of the code
    with fx_config.patch(use_duck_shape=False), dynamo_config.patch(recompile_limit=64):  # pyright: ignore[reportAttributeAccessIssue]
        yield


@cache
def compiled(step: Function) -> Function:
    """`step` in compiled code for two rows or more, made when it is first called."""
    return cast(Function, torch.compile(step, dynamic=True, fullgraph=True))


def attention(keys: Tensor, values: Tensor, slots: LockstepSlot | RaggedSlots | StaticSlots) -> Attend:
    """Attention of new entries of a layer, which are stored, to those of their own rows; by the kind of the cache."""
    if isinstance(slots, LockstepSlot | RaggedSlots):
        return cached_attention(keys, values, slots)
    return static_attention(keys, values, slots)


def token_logits(
    model: LlamaGen,
    x: Float[Tensor, "R D"],
    rope: Float[Tensor, "1 half 2"],
    entries: Entries,
    slots: LockstepSlot | StaticSlots,
) -> Float[Tensor, "R V"]:
    """Logits of the token after the one of embedding `x`."""
    for layer, keys, values in zip(model.layers, *entries, strict=True):
        x = layer(x, rope, attention(keys, values, slots))
    return model.output(model.norm(x))


def token_entropy(
    model: LlamaGen,
    x: Float[Tensor, "R D"],
    rope: Float[Tensor, "1 half 2"],
    entries: Entries,
    slots: LockstepSlot | StaticSlots,
) -> Float[Tensor, " R"]:
    """Entropy in nats of that token (Eq. 3)."""
    return entropy_from_outputs(model, token_logits(model, x, rope, entries, slots))


def encoder_step(
    model: DPAR,
    x: Float[Tensor, "B D"],
    rope: Float[Tensor, "1 half 2"],
    entries: Entries,
    slots: LockstepSlot | StaticSlots,
) -> list[Float[Tensor, "B D"]]:
    """States of the token of embedding `x` after each layer of the encoder (Eq. 4)."""
    states = []
    for layer, keys, values in zip(_encoder(model), *entries, strict=True):
        x = layer.block(x, rope, attention(keys, values, slots))
        states.append(x)
    return states


def pool_patches(
    model: DPAR, states: Sequence[Float[Tensor, "N D"]], ids: Int[Tensor, " N"], count: int
) -> Float[Tensor, "count D"]:
    """States of `count` patches from those of their tokens after each layer; `ids` are the tokens' patches (Eq. 5)."""
    patches = None
    for layer, some in zip(_encoder(model), states, strict=True):
        patches = layer.gather(some, patches, ids, count)
    assert patches is not None
    return patches


def patch_transformer_step(
    model: DPAR,
    x: Float[Tensor, "n D"],
    rope: Float[Tensor, "n half 2"],
    entries: Entries,
    slots: RaggedSlots | StaticSlots,
) -> list[Float[Tensor, "n D"]]:
    """States that each layer of the decoder adds to the tokens of the patches that follow the patches `x` (Eq. 6)."""
    for layer, keys, values in zip(model.patch_transformer.layers, *entries, strict=True):
        x = layer(x, rope, attention(keys, values, slots))
    return [layer.projection(layer.norm(x)) for layer in _decoder(model)]


def decoder_step(
    model: DPAR,
    x: Float[Tensor, "R D"],
    added: Sequence[Float[Tensor, "R D"]],
    rope: Float[Tensor, "1 half 2"],
    entries: Entries,
    slots: LockstepSlot | StaticSlots,
) -> Float[Tensor, "R V"]:
    """Logits of the token after the one of state `x`, to which each layer adds its own first (Eqs. 6-7)."""
    for layer, more, keys, values in zip(_decoder(model), added, *entries, strict=True):
        x = layer.block(x + more, rope, attention(keys, values, slots))
    return model.decoder.output(model.decoder.norm(x))


def _encoder(model: DPAR) -> Sequence[PatchEncoderLayer]:
    return cast(Sequence[PatchEncoderLayer], model.encoder.layers)


def _decoder(model: DPAR) -> Sequence[PatchDecoderLayer]:
    return cast(Sequence[PatchDecoderLayer], model.decoder.layers)
