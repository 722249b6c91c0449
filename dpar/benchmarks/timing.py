"""Seconds of draws: whole ones in turns, and those of each part of the model."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dpar.model.dpar import DPAR
from dpar.sampling.networks import Networks
from dpar.sampling.sampler import Step

PARTS = ("entropy_model", "encoder", "patch_transformer", "decoder")
WARM_UP = 4  # tokens


class _WarmedUp(Exception):  # noqa: N818  # nothing has gone wrong
    """Enough of a draw."""


def warm_up(draw: Callable[[Callable[[Step], object]], object]) -> None:
    """Draws the first tokens only: the first calls of a size allocate, choose and compile."""
    seen: list[Step] = []

    def observe(step: Step) -> None:
        seen.append(step)
        if len(seen) == WARM_UP:
            raise _WarmedUp

    with suppress(_WarmedUp):
        draw(observe)


def in_turns(works: Sequence[Callable[[], object]], turns: int, device: torch.device) -> list[list[float]]:
    """Seconds of each of `works` in each of the turns; every other turn goes backwards."""
    seconds: list[list[float]] = [[] for _ in works]
    for turn in range(turns):
        for i in range(len(works))[:: 1 if turn % 2 == 0 else -1]:
            seconds[i].append(timed(works[i], device)[0])
    return seconds


def timed(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds that `work` takes, and its result."""
    start = seconds(device)
    result = work()
    return seconds(device) - start, result


def seconds(device: torch.device) -> float:
    """A clock: of the wall, or of the processor where one thread computes, so that other jobs disturb it little."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.process_time() if clock(device) == "processor" else time.perf_counter()


def clock(device: torch.device) -> str:
    """The clock whose seconds are counted."""
    return "processor" if device.type == "cpu" and torch.get_num_threads() == 1 else "wall"


@dataclass
class Timings:
    """Seconds and calls of each part of the model in one draw that took `total` seconds."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    calls: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    total: float = 0.0

    def shares(self, pixels: float) -> dict[str, float]:
        """Shares of the time from labels to images; the rest is noise, guidance, the draw and bookkeeping.

        Args:
            pixels: seconds that the drawn images take to become pixels.
        """
        parts = self.seconds | {"pixels": pixels}
        shares = {part: seconds / (self.total + pixels) for part, seconds in parts.items()}
        return shares | {"rest": 1 - sum(shares.values())}


@contextmanager
def watched(networks: Networks) -> Iterator[Timings]:
    """Times the modules of each part while the block draws images; on a GPU this makes it wait for each of them."""
    model, entropy_model = networks.model, networks.entropy_model
    assert isinstance(model, DPAR)
    assert entropy_model is not None
    blocks = {
        "entropy_model": [
            entropy_model.tok_embeddings,
            *entropy_model.layers,
            entropy_model.norm,
            entropy_model.output,
        ],
        "encoder": [m for layer in model.encoder.layers for m in layer.children()] + [model.tok_embeddings],
        "patch_transformer": [*model.patch_transformer.layers, model.cls_embedding],
        "decoder": [m for layer in model.decoder.layers for m in layer.children()]
        + [model.decoder.norm, model.decoder.output],
    }
    counted = {
        "entropy_model": entropy_model.output,
        "encoder": model.tok_embeddings,
        "patch_transformer": model.patch_transformer.layers[0],
        "decoder": model.decoder.output,
    }
    timing = Timings()
    began = 0.0

    def before(module: nn.Module, inputs: Any) -> None:
        nonlocal began
        began = seconds(networks.device)

    def after(part: str) -> Callable[..., None]:
        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            timing.seconds[part] += seconds(networks.device) - began
            timing.calls[part] += module is counted[part]

        return add

    handles = []
    for part, modules in blocks.items():
        for module in modules:
            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after(part))]
    try:
        yield timing
    finally:
        for handle in handles:
            handle.remove()


def say(line: str) -> None:
    """Progress, for people."""
    print(line, file=sys.stderr)
