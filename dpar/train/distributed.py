"""One process or many: data-parallel training as torchrun starts it, with weights copied (DDP) or sharded (FSDP2)."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from dpar.device import default_device
from dpar.launched import launched
from dpar.train.watch import LONG_S, Watch

if TYPE_CHECKING:  # takes most of a second
    from torch.distributed.tensor import DTensor

V = TypeVar("V")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; every method but `main` must be called by all of them."""

    device: torch.device
    rank: int = 0
    size: int = 1
    watch: Watch | None = None

    @property
    def main(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def at(self, place: str, *, long: bool = False) -> None:
        """Signals that the ranks reach `place`, where one that stays too long has hung; `long` if one works alone."""
        if self.watch is not None:
            self.watch.at(place, long=long)

    def tick(self) -> None:
        """Signals that this rank is working; need not be called by all."""
        if self.watch is not None:
            self.watch.tick()

    def saved(self) -> None:
        """Signals that a checkpoint has been saved, from which a restart would continue."""
        if self.watch is not None:
            self.watch.saved()

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        if self.watch is not None:
            self.watch.waits(True)
        yield
        if self.watch is not None:
            self.watch.waits(False)

    def total(self, value: Tensor) -> Tensor:
        """The sum of `value` over all ranks, in place."""
        if self.size > 1:
            with self._waiting():
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
            with self._waiting():
                dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]

    def wait_for_main(self) -> None:
        """Returns when the main rank has called it; a rank that ended earlier would have it stopped too."""
        self.from_main(None)

    def gather(self, value: V) -> list[V]:
        """The `value` of every rank, in rank order."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            with self._waiting():
                dist.all_gather_object(values, value)
        return values

    def parallel(self, model: nn.Module) -> nn.Module:
        """`model`, or its wrapper that averages gradients over the ranks."""
        if self.size == 1:
            return model
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)

    def shard(self, model: nn.Module, layers: Iterable[nn.Module]) -> None:
        """Shards the weights of `model` over the ranks in place (FSDP2), and so its gradients and moments.

        A layer's weights are in full on a rank only while the layer is computed; gradients are averaged over the ranks.
        Every rank must call the model equally often. Weights travel in their own precision, so that sharding
        changes the order of sums and nothing else.

        Args:
            model: in full, and the same on all ranks.
            layers: modules of `model` that are gathered one at a time; what lies outside of them is gathered at once.
        """
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.size,))
        for module in (*layers, model):
            fully_shard(module, mesh=mesh, reshard_after_forward=True)

    def gather_state(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors in full on the main rank's host, nothing on the other ranks."""
        state = {}
        for name, tensor in tensors.items():
            full = full_tensor(tensor)
            if self.main:
                state[name] = full.detach().cpu()
        return state


def full_tensor(tensor: Tensor) -> Tensor:
    """`tensor` in full; of a sharded one, every rank must call this."""
    return cast("DTensor", tensor).full_tensor() if hasattr(tensor, "full_tensor") else tensor


def shard_like(other: Tensor, tensor: Tensor) -> Tensor:
    """This rank's shard of `tensor`, which every rank has in full, if `other` is sharded; else `tensor`."""
    if not hasattr(other, "device_mesh"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    like = cast("DTensor", other)
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


@contextmanager
def ranks() -> Iterator[Ranks]:
    """This process's place among the ranks that `dpar.workflow.torchrun` started, or alone.

    NCCL carries GPU tensors, gloo those on the CPU. A rank that hangs ends all of them (`dpar.train.watch`).
    The group is taken down when all ranks leave together (a good end or an agreed exit); after an error the process
    ends at once, and torchrun shows its traceback and stops the rest.
    """
    device = default_device()
    place = launched()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if place is None or place.size == 1:
        yield Ranks(device)
        return
    store: Any = next(rendezvous("env://"))[0]
    watch = Watch(PrefixStore("watch", store.clone()), place.rank, place.size)
    watch.start()  # which sees a rank that never comes, too
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=PrefixStore("group", store),
        rank=place.rank,
        world_size=place.size,
        timeout=timedelta(seconds=2 * LONG_S),  # where the watch could not help
    )
    try:
        yield Ranks(device, place.rank, place.size, watch)
    except SystemExit:
        watch.stop()
        dist.destroy_process_group()
        raise
    watch.stop()
    dist.destroy_process_group()
