"""LlamaGen's own sampler, imported from a checkout on this machine, as an opponent of ours; it is no part of dpar."""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpar.benchmarks.conditions import commit_label
from dpar.errors import InputError
from dpar.model.llamagen import LlamaGen
from dpar.tracking.environment import git_commit


def described(checkout: Path, device: torch.device) -> dict[str, Any]:
    """The code that it is, and how it runs."""
    return {"commit": commit_label(*git_commit(checkout)), "compiled": device.type == "cuda"}


def own_sampler(checkout: Path, model: LlamaGen, cfg_scale: float) -> Callable[[int], Tensor]:
    """A function that draws a batch of so many images (B, T) with LlamaGen's `generate` and the weights of `model`.

    It is set up as by its `sample_c2i_ddp.py`: in the precision of `model`, on a GPU compiled with CUDA graphs, for one
    batch size: make another for another.

    Raises:
        InputError: `checkout` is no checkout of LlamaGen, its network does not take these weights, or it would guide
            with one branch where ours has two.
    """
    if 0 < cfg_scale < 1:
        raise InputError(f"--llamagen: its code does not guide below 1, ours does at {cfg_scale}; give another --cfg")
    config, like, num_classes = model.config, model.output.weight, model.null_label
    sys.path.insert(0, str(checkout))
    try:
        gpt, generate = (import_module(f"autoregressive.models.{name}") for name in ("gpt", "generate"))
    except ImportError as error:
        raise InputError(
            f"--llamagen {checkout}: LlamaGen's code cannot be imported from there ({error}); "
            "give the folder that `git clone https://github.com/FoundationVision/LlamaGen` made"
        ) from None
    finally:
        sys.path.remove(str(checkout))
    network: Any = gpt.Transformer(
        gpt.ModelArgs(
            dim=config.width,
            n_layer=config.layers,
            n_head=config.heads,
            vocab_size=config.vocab_size,
            block_size=config.tokens,
            num_classes=num_classes,
        )
    )
    try:
        network.load_state_dict(model.state_dict())
    except RuntimeError as error:
        raise InputError(f"--llamagen {checkout}: its network takes other weights ({error})") from None
    network.to(like.device, like.dtype).eval()
    if like.device.type == "cuda":
        network = torch.compile(network, mode="reduce-overhead", fullgraph=True, dynamic=False)

    def draw(batch: int) -> Tensor:
        labels = torch.arange(batch, device=like.device) % num_classes
        choice = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "sample_logits": True}
        return generate.generate(network, labels, config.tokens, cfg_scale=cfg_scale, **choice)

    return draw
