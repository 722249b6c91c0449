"""Batches of codes in an order that depends on the seed alone, from any step on and over any number of ranks.

An epoch is a permutation of the images by (seed, epoch); each image shows one of its views, drawn by (seed, epoch,
image). Both come from a counter-based generator, so step `s` can be computed without the steps before it: a resumed run
begins there. The last images that do not fill a global batch sit out that epoch.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt64
from torch import Tensor

from dpar.data.codes import CodeStore
from dpar.data.workers import mapped
from dpar.errors import InputError
from dpar.splitmix import STEP, signed, splitmix64

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """Images of one step and one epoch on one rank."""

    tokens: Int[Tensor, "B T"]
    labels: Int[Tensor, "B"]
    entropy: Float[Tensor, "B T"] | None  # nats
    images: Int[Tensor, "B"]
    views: Int[Tensor, "B"]
    step: int  # optimizer steps before this one
    epoch: int


def steps_per_epoch(store: CodeStore, batch_size: int) -> int:
    """Steps in which each image is seen at most once; images that do not fill a last batch are left out.

    Raises:
        InputError: the images do not fill one batch.
    """
    if store.num_images < batch_size:
        raise InputError(
            f"{store.num_images} images do not fill one batch of {batch_size}; lower `batch_size` or add images"
        )
    return store.num_images // batch_size


def batches(
    store: CodeStore,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    accumulate: int = 1,
) -> Iterator[Batch]:
    """Endless micro-batches of one rank from `start_step` on, `accumulate` of them per step.

    Micro-batch `a` of rank `r` is part `a * world_size + r` of the global batch: the global batch of a step, its order
    and its views are the same for every number of ranks and micro-batches.

    Args:
        batch_size: images per step, over all ranks and micro-batches.
        seed: of order and views.
        start_step: optimizer steps already taken.
        world_size: processes that share a step.
        accumulate: micro-batches per step on each rank.

    Raises:
        InputError: the images do not fill a batch, or the batch cannot be divided.
    """
    if batch_size % (world_size * accumulate):
        raise InputError(
            f"batch size {batch_size} cannot be divided by {world_size} ranks x {accumulate} micro-batches; "
            "change `training.batch_size`, `training.accumulate` or the number of processes"
        )
    steps_per_epoch(store, batch_size)
    store.expect_random_order()

    def batch(number: int) -> Batch:
        step, micro = divmod(number, accumulate)
        return batch_at(store, step, micro * world_size + rank, world_size * accumulate, batch_size, seed)

    return map(batch, itertools.count(start_step * accumulate))


def batch_at(store: CodeStore, step: int, part: int, parts: int, batch_size: int, seed: int) -> Batch:
    """Part `part` of `parts` of the global batch of a step, as a function of these arguments alone."""
    epoch, place = divmod(step, steps_per_epoch(store, batch_size))
    share = batch_size // parts
    begin = place * batch_size + part * share
    images = epoch_order(store.num_images, seed, epoch)[begin : begin + share].copy()
    return _gather(store, images, epoch_views(images, store.num_views, seed, epoch), step, epoch)


def sequential(
    store: CodeStore, batch_size: int, *, view: int | Int[np.ndarray, "I"] = 0, rank: int = 0, world_size: int = 1
) -> Iterator[Batch]:
    """One view of every image (the same of all, or each its own), in the order stored; the last batch may be smaller.

    Of several ranks, rank `r` gets batches r, r + world_size, ...
    """
    views = np.broadcast_to(view, store.num_images)
    for step, begin in enumerate(range(0, store.num_images, batch_size)):
        if step % world_size == rank:
            images = np.arange(begin, min(begin + batch_size, store.num_images))
            yield _gather(store, images, views[images], step, 0)


def _gather(store: CodeStore, images: np.ndarray, views: np.ndarray, step: int, epoch: int) -> Batch:
    rows = images * store.num_views + views

    def taken(stored: np.ndarray) -> np.ndarray:  # faster than indexing by two arrays
        return np.asarray(stored.reshape(-1, stored.shape[-1]).take(rows, axis=0))

    return Batch(
        tokens=torch.from_numpy(taken(store.tokens).astype(np.int64)),
        labels=torch.from_numpy(store.labels[images].astype(np.int64)),
        entropy=None if store.entropy is None else torch.from_numpy(taken(store.entropy)),
        images=torch.from_numpy(images),
        views=torch.from_numpy(views),
        step=step,
        epoch=epoch,
    )


@lru_cache(maxsize=2)  # batches read ahead may belong to the next epoch
def epoch_order(num_images: int, seed: int, epoch: int) -> Int[np.ndarray, "I"]:
    """All image numbers in the order of an epoch."""
    order = np.argsort(random_bits(seed, "order", epoch, np.arange(num_images)), kind="stable")
    order.flags.writeable = False
    return order


def epoch_views(images: Int[np.ndarray, "B"], num_views: int, seed: int, epoch: int) -> Int[np.ndarray, "B"]:
    """The view that each image shows in an epoch, all equally likely."""
    return (random_bits(seed, "view", epoch, images) % np.uint64(num_views)).astype(np.int64)


def random_uniform(seed: int, stream: str, epoch: int, images: Int[np.ndarray, "B"]) -> Float[np.ndarray, "B"]:
    """A float64 in [0, 1) for each image that depends on these arguments and its number only."""
    return (random_bits(seed, stream, epoch, images) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def random_bits(seed: int, stream: str, epoch: int, images: Int[np.ndarray, "B"]) -> UInt64[np.ndarray, "B"]:
    """64 random bits for each image: SplitMix64 over a hash of (seed, stream, epoch) and the image's number."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{stream}/{epoch}".encode()).digest()[:8], "little")
    numbers = torch.from_numpy(np.asarray(images).astype(np.int64))
    return splitmix64(numbers * STEP + signed(key)).numpy().view(np.uint64)


def prefetched(items: Iterable[T], depth: int = 4) -> Iterator[T]:
    """The same items, made up to `depth` ahead by a thread."""
    iterator = iter(items)
    end = object()
    for item in mapped(lambda _: next(iterator, end), itertools.count(), threads=1, ahead=depth):
        if item is end:
            return
        yield item  # type: ignore[misc]
