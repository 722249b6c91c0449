"""Averages, speed and memory of a running training."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import torch
from jaxtyping import Float
from torch import Tensor


@dataclass
class Window:
    """Sums over the steps since the last point of the curves; checkpoints hold them under these names."""

    steps: int = 0
    loss: float = 0.0
    grad_norm: float = 0.0
    patch_length: float = 0.0
    patches: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if type(value) not in (int, float):
                raise TypeError(f"{name} of the window is {value!r}, not a number")

    def add(self, loss: float, mean_patch_length: float, patches: float, grad_norm: float) -> None:
        """One more step."""
        self.steps += 1
        self.loss += loss
        self.grad_norm += grad_norm
        self.patch_length += mean_patch_length
        self.patches += patches

    def means(self, *, with_patches: bool) -> dict[str, float]:
        """The point of the curves."""
        means = {"train/loss": self.loss / self.steps, "train/grad_norm": self.grad_norm / self.steps}
        if with_patches:
            means |= {"patch/mean_length": self.patch_length / self.steps, "patch/per_image": self.patches / self.steps}
        return means


@dataclass(frozen=True)
class Outcome:
    """The values of a step, copied from device to host without blocking, and its number of images on this rank."""

    step: int
    values: Float[Tensor, " 4"]  # loss, mean patch length, patches per image, gradient norm
    images: list[int]
    arrived: torch.cuda.Event | None

    @classmethod
    def of(cls, step: int, values: Float[Tensor, " 4"], images: list[int]) -> "Outcome":
        """The outcome of `step`, whose `values` may still be being computed on the device."""
        copy, arrived = values.to("cpu", non_blocking=True), None
        if values.is_cuda:
            arrived = torch.cuda.Event()
            arrived.record()
        return cls(step, copy, images, arrived)

    def read(self) -> list[float]:
        """The values, when they have arrived."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.values.tolist()


class Clock:
    """Seconds and steps of training alone: without validation and checkpoints."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._since = time.perf_counter()
        self.steps = 0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time of its block."""
        self._seconds += time.perf_counter() - self._since
        yield
        self._since = time.perf_counter()

    def lap(self) -> tuple[float, int]:
        """Seconds and steps since the last lap."""
        now = time.perf_counter()
        lap = self._seconds + now - self._since, self.steps
        self._seconds, self._since, self.steps = 0.0, now, 0
        return lap


def memory_gib(device: torch.device) -> float:
    """Peak memory allocated on a GPU since the start, or resident memory of the process, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return psutil.Process().memory_info().rss / 2**30
