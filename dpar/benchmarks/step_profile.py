"""Time of a training step by its parts, and the memory that it needs."""

import contextlib
import ctypes
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

from dpar.train.loop import Trainer


class StepParts:
    """Time by part of a step, marked where the model and the optimizer call back."""

    def __init__(self, device: torch.device):
        self.device = device
        self.marks: list[tuple[str, Any]] = []

    def mark(self, part: str) -> None:
        """From here on it is `part`."""
        if self.device.type == "cuda":
            at = torch.cuda.Event(enable_timing=True)
            at.record()
        else:
            at = time.perf_counter()
        self.marks.append((part, at))

    @contextlib.contextmanager
    def watching(self, trainer: Trainer) -> Iterator[None]:
        """Marks the parts of the steps that are taken in this block."""
        handles = [
            trainer.model.register_forward_pre_hook(lambda *_: self.mark("forward")),
            trainer.model.register_forward_hook(lambda *_: self.mark("backward")),
            trainer.optimizer.register_step_pre_hook(lambda *_: self.mark("optimizer")),
            trainer.optimizer.register_step_post_hook(lambda *_: self.mark("rest")),
        ]
        self.mark("rest")
        try:
            yield
        finally:
            self.mark("end")
            for handle in handles:
                handle.remove()

    def seconds(self) -> dict[str, float]:
        """Seconds of each part; the device must have finished."""
        sums: dict[str, float] = dict.fromkeys(("forward", "backward", "optimizer", "rest"), 0.0)
        for (part, begin), (_, end) in zip(self.marks, self.marks[1:], strict=False):
            sums[part] += begin.elapsed_time(end) / 1000 if self.device.type == "cuda" else end - begin
        return sums


def step_memory(device: torch.device, step: Callable[[], None]) -> int | None:
    """Bytes that `step` needed at its peak beyond what was allocated before; None where that cannot be seen.

    On a CPU it is what the process' resident memory rose by, which Linux says.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    peak = Path("/proc/self/clear_refs")
    if not peak.exists():
        step()
        return None
    ctypes.CDLL(None).malloc_trim(0)  # what was freed would be used again unseen
    peak.write_text("5", "utf-8")  # forget the peak
    before = psutil.Process().memory_info().rss
    step()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text("utf-8", "replace").splitlines())
    return int(status["VmHWM"].split()[0]) * 1024 - before


def state_memory(trainer: Trainer) -> int:
    """Bytes of weights and moments."""
    moments = [t for state in trainer.optimizer.state.values() for t in state.values() if torch.is_tensor(t)]
    return sum(t.numel() * t.element_size() for t in [*trainer.model.parameters(), *moments])
