"""Compilation and activation checkpointing of the layers of a network in training.

Both replace the `forward` of a layer, not the layer: hooks (as of sharded weights) run around it, and a compiled
layer is what is computed again, so that the two and both ways of data parallelism go together.
"""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch._dynamo import config as dynamo_config
from torch.utils.checkpoint import checkpoint

from dpar.device import try_compiler
from dpar.model.attention import fastest_backend
from dpar.model.dpar import DPAR
from dpar.model.layers import Block
from dpar.model.patch_decoder import PatchDecoderLayer
from dpar.model.patch_encoder import PatchCrossAttention


def blocks(model: nn.Module) -> list[Block]:
    """The transformer layers of a network, in the order in which they are computed."""
    return [module for module in model.modules() if isinstance(module, Block)]


def compile_blocks(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Compiles the layers of `model` in place, for tensors of any length, so that packed batches compile once.

    The parts of a DPAR between its layers are compiled too: many passes over all tokens, few products.

    Lengths are not padded to a bucket: sizes are symbols in the compiled code, which a new length does not change.
    Only PyTorch's own packed attention can be traced. The others are loops over images, which a compiler would unroll
    for each batch anew, or calls that would break the graph; of those layers only the feed-forward network is compiled.

    Args:
        model: on `device`.
        device: of the tensors to come.
        dtype: of the products to come.

    Raises:
        InputError: nothing can be compiled here.
    """
    try_compiler(device)
    # layers are compiled one by one: PyTorch need not split them where a bucket of gradients (25 MB) is full, as it
    # would those of an XL (81 MB)
    dynamo_config.optimize_ddp = False  # pyright: ignore[reportAttributeAccessIssue]
    opaque: set[nn.Module] = set()
    if isinstance(model, DPAR):
        backend = model.config.attention
        if backend == "auto":
            backend = fastest_backend(device, dtype)
        if backend != "varlen":
            opaque = set(model.patch_transformer.modules())
    for block in blocks(model):
        traced: Any = block.feed_forward if block in opaque else block
        traced.forward = torch.compile(traced.forward, dynamic=True)
    between: Any
    for between in model.modules():
        if isinstance(between, PatchCrossAttention):
            between.forward = torch.compile(between.forward, dynamic=True)
        elif isinstance(between, PatchDecoderLayer):
            between.add_patch_state = torch.compile(between.add_patch_state, dynamic=True)


def checkpoint_activations(model: nn.Module) -> None:
    """Activation checkpointing of each layer of `model`, in place: only inputs are kept, the rest is recomputed.

    Random numbers are reproduced: outputs and gradients are equal to the bit.
    """
    layer: Any
    for layer in blocks(model):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
