"""KV caches: one position per step for all rows, or a length of its own for each row.

With one query per row, attention on a CPU is bound by memory reads, which are fast only where memory is contiguous. So
there the buffers grow with the entries, and attention reads all of them, with a weight of 0 for empty ones. On a GPU,
buffers have their full size from the start, and PyTorch's kernels read the filled part.

In each step a cache gives the slots of the new entries and their attention masks as tensors (`LockstepSlot`,
`RaggedSlots`); the functions that compute with them depend on nothing else, so that they can be compiled.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from dpar.device import to_device
from dpar.model.layers import Attend, at_least_float32

GROWTH = 16
"""Entries by which the caches of a CPU grow: few empty ones to read, few reallocations."""

GATHER_BYTES = 2**21
"""Bytes of keys and values that a CPU gathers at once: small enough for its cache, and below the size at which the
allocator maps new memory for each request."""


class LockstepSlot(NamedTuple):
    """One step of all rows, at the same position."""

    position: int  # of the new entry
    length: int  # entries of each row to read
    bias: Tensor | None  # of scores (1, 1, length); None where all of them are filled


class RaggedSlots(NamedTuple):
    """One step of some rows, each at its own position."""

    row_indices: Tensor  # rows that enter (n,)
    positions: Tensor  # of each one's new entry (n,)
    length: int  # entries of each row to read
    pieces: Sequence[Tensor | int]  # rows to gather at once, a row that is not moved as its number; () to read them all
    biases: Sequence[Tensor | None]  # of scores (rows, heads or 1, length) of each piece, or of all; None as above
    scatter_queries: bool  # whether all rows are read though only some of them have a query


class Entries(NamedTuple):
    """Keys and values of a stack of layers."""

    keys: list[Tensor]  # of each layer (R, H, capacity, head_dim)
    values: list[Tensor]


def on_cpu(like: Float[Tensor, "..."]) -> bool:
    """Whether buffers grow and are read whole."""
    return like.device.type == "cpu"


def by_products(like: Float[Tensor, "..."]) -> bool:
    """Whether attention is two batched products, which is faster there than PyTorch's kernel."""
    return on_cpu(like) and like.dtype == at_least_float32(like.dtype)


def cached_attention(
    keys: Float[Tensor, "R H N head_dim"], values: Float[Tensor, "R H N head_dim"], slots: LockstepSlot | RaggedSlots
) -> Attend:
    """Attention of new entries (R or n, H, head_dim) of a layer, which are stored, to those of their own rows."""
    if isinstance(slots, LockstepSlot):
        return lambda q, k, v: _attend_lockstep(q, k, v, keys, values, slots)
    return lambda q, k, v: _attend_ragged(q, k, v, keys, values, slots)


def _attend_lockstep(
    q: Float[Tensor, "R H head_dim"],
    k: Float[Tensor, "R H head_dim"],
    v: Float[Tensor, "R H head_dim"],
    keys: Float[Tensor, "R H N head_dim"],
    values: Float[Tensor, "R H N head_dim"],
    slots: LockstepSlot,
) -> Float[Tensor, "R H head_dim"]:
    keys.narrow(2, slots.position, 1).copy_(k[:, :, None])
    values.narrow(2, slots.position, 1).copy_(v[:, :, None])
    return attend(q, keys[:, :, : slots.length], values[:, :, : slots.length], slots.bias)


def _attend_ragged(
    q: Float[Tensor, "n H head_dim"],
    k: Float[Tensor, "n H head_dim"],
    v: Float[Tensor, "n H head_dim"],
    keys: Float[Tensor, "R H N head_dim"],
    values: Float[Tensor, "R H N head_dim"],
    slots: RaggedSlots,
) -> Float[Tensor, "n H head_dim"]:
    keys[slots.row_indices, :, slots.positions] = k
    values[slots.row_indices, :, slots.positions] = v
    keys, values = keys[:, :, : slots.length], values[:, :, : slots.length]
    if not slots.pieces:
        if not slots.scatter_queries:
            return attend(q, keys, values, slots.biases[0])
        asked = q.new_zeros(keys.shape[0], *q.shape[1:]).index_copy_(0, slots.row_indices, q)
        return attend(asked, keys, values, slots.biases[0]).index_select(0, slots.row_indices)
    sizes = [1 if isinstance(rows, int) else len(rows) for rows in slots.pieces]
    out = [
        attend(some, _of(keys, rows), _of(values, rows), bias)
        for some, rows, bias in zip(q.split(sizes), slots.pieces, slots.biases, strict=True)
    ]
    return out[0] if len(out) == 1 else torch.cat(out)


def _of(entries: Float[Tensor, "R *rest"], rows: Int[Tensor, " n"] | int) -> Float[Tensor, "n *rest"]:
    return entries[rows : rows + 1] if isinstance(rows, int) else entries.index_select(0, rows)


def attend(
    q: Float[Tensor, "R H head_dim"],
    keys: Float[Tensor, "R H N head_dim"],
    values: Float[Tensor, "R H N head_dim"],
    bias: Float[Tensor, "#R #H N"] | None,
) -> Float[Tensor, "R H head_dim"]:
    """Attention of one query per row to the keys and values of that row."""
    if not by_products(q):
        mask = None if bias is None else bias[:, :, None]
        return F.scaled_dot_product_attention(q[:, :, None], keys, values, attn_mask=mask)[:, :, 0]
    assert bias is not None
    length, width = keys.shape[2:]
    keys, values = keys.view(-1, length, width), values.view(-1, length, width)
    scores = torch.baddbmm(bias.view(-1, 1, length), q.reshape(-1, 1, width), keys.mT, alpha=width**-0.5)
    return torch.bmm(scores.softmax(-1), values).view(q.shape)


class _Cache:
    def __init__(self, layers: int, rows: int, length: int, heads: int, like: Float[Tensor, "... D"], *, ragged: bool):
        self.grows, self.max_length, width = on_cpu(like), length, like.shape[-1] // heads
        # not grown, they have one entry too many: code that reads a part is compiled again where it reads all of them
        capacity = min(GROWTH, length) if self.grows else length + 1
        # filled, since empty entries get the weight 0, and 0 x NaN is not 0
        keys, values = ([like.new_zeros(rows, heads, capacity, width) for _ in range(layers)] for _ in range(2))
        self.entries = Entries(keys, values)
        of_each = (rows, heads if by_products(like) else 1) if ragged else (1, 1)
        self.bias = like.new_full((*of_each, capacity), -torch.inf)

    def truncate_batch(self, rows: int) -> None:
        """Keeps only the first `rows` rows."""
        self.entries = Entries(*([some[:rows] for some in kept] for kept in self.entries))
        self.bias = self.bias[:rows]

    def _readable(self, longest: int) -> int:
        """Entries per row that attention reads to cover `longest`; the buffers grow to hold them."""
        if not self.grows:
            return longest
        rows, heads, capacity, width = self.entries.keys[0].shape
        if longest <= capacity:
            return capacity
        empty = self.entries.keys[0].new_zeros(rows, heads, min(GROWTH, self.max_length - capacity), width)
        for kept in self.entries:
            for layer, some in enumerate(kept):  # one by one: never twice the memory
                kept[layer] = torch.cat((some, empty), 2)
        self.bias = F.pad(self.bias, (0, empty.shape[2]), value=-torch.inf)
        return self.bias.shape[2]


class TokenCache(_Cache):
    """The cache of a stack in which all rows are at the same position."""

    def __init__(self, layers: int, rows: int, length: int, heads: int, like: Float[Tensor, "... D"]):
        """Room for the keys and values of every layer.

        Args:
            layers: blocks that share the positions.
            rows: sequences (R).
            length: the most entries a row will hold.
            heads: of attention (H).
            like: a weight; dtype and device are taken from it. Its width is heads x head_dim.
        """
        super().__init__(layers, rows, length, heads, like, ragged=False)

    def append(self, position: int) -> LockstepSlot:
        """A new entry for every row, at `position`, which follows the last one."""
        length = self._readable(position + 1)
        if not self.grows:
            return LockstepSlot(position, length, None)
        self.bias.select(2, position).fill_(0)
        return LockstepSlot(position, length, self.bias)


class RaggedCache(_Cache):
    """The cache of a stack in which each row has a length of its own: any rows take part in a step.

    The rows that take part are gathered; a CPU does it in pieces, and does not copy a row that is a piece by itself. If
    all rows take part (on a CPU: most of them), attention runs over all rows instead, which is faster than copying.
    """

    def __init__(self, layers: int, rows: int, length: int, heads: int, like: Float[Tensor, "... D"]):
        """As `TokenCache`."""
        super().__init__(layers, rows, length, heads, like, ragged=True)
        self.lengths = np.zeros(rows, dtype=np.int64)

    def truncate_batch(self, rows: int) -> None:
        """Keeps only the first `rows` rows."""
        super().truncate_batch(rows)
        self.lengths = self.lengths[:rows]

    def append(self, rows: Int[np.ndarray, " n"]) -> RaggedSlots:
        """A new entry for each of `rows`."""
        positions = self.lengths[rows]
        self.lengths[rows] += 1
        longest = max(int(positions.max()) + 1, 2)  # a length of 1 would be compiled by itself
        length = self._readable(min(longest, self.max_length))
        index, position = to_device(torch.from_numpy(np.stack([rows, positions])), self.bias.device)
        self.bias[index, :, position] = 0
        bias = self.bias[:, :, :length]
        if self.grows and 2 * len(rows) > len(self.lengths):
            return RaggedSlots(index, position, length, (), (bias,), scatter_queries=True)
        if not self.grows and np.array_equal(rows, np.arange(len(self.lengths))):
            filled = self.lengths.min() >= length  # without a bias PyTorch has faster kernels
            return RaggedSlots(index, position, length, (), (None if filled else bias,), scatter_queries=False)
        at_once = max(1, GATHER_BYTES // (2 * self.entries.keys[0][0].nbytes)) if self.grows else len(rows)
        alone = at_once == 1 < len(rows)
        pieces: Sequence[Tensor | int] = rows.tolist() if alone else index.split(at_once)
        return RaggedSlots(
            index, position, length, tuple(pieces), tuple(_of(bias, some) for some in pieces), scatter_queries=False
        )
