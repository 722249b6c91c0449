"""One process or many: data-parallel training as torchrun starts it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dpar.device import default_device

V = TypeVar("V")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; every method but `main` must be called by all of them."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes files and speaks."""
        return self.rank == 0

    def total(self, value: Tensor) -> Tensor:
        """The sum of `value` over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on some rank."""
        if self.size == 1:
            return flag
        return bool(self.total(torch.tensor(int(flag))).item())

    def from_main(self, value: V) -> V:
        """The main rank's `value`."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]

    def gather(self, value: V) -> list[V]:
        """The `value` of every rank, in rank order."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def parallel(self, model: nn.Module) -> nn.Module:
        """`model`, or its wrapper that averages gradients over the ranks."""
        if self.size == 1:
            return model
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)


@contextmanager
def ranks() -> Iterator[Ranks]:
    """This process's place among the ranks that torchrun started (WORLD_SIZE > 1), or alone.

    NCCL carries GPU tensors, gloo those on the CPU. The group is taken down when all ranks leave together (a good end
    or an agreed exit); after an error the process ends at once, and torchrun shows its traceback and stops the rest.
    """
    device = default_device()
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield Ranks(device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(device, dist.get_rank(), size)
    except SystemExit:
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()
