"""Keys and values of what has been read: one position a step for all rows, or a length of its own for each row.

One query a row leaves a CPU little to do but read, and it reads fast only where memory goes on without a gap. So there
the room for keys and values grows as they come, and attention goes over all of it, with a weight of 0 for what has not
been read yet. A GPU has room for everything from the start, and PyTorch's kernels read the part that is filled.

A cache tells in each step where the new entries go and what they may see (`Together`, `Apart`), as tensors; the
functions that then compute are plain and know nothing else, so that they can be compiled.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from dpar.device import sent
from dpar.model.layers import Attend, at_least_float32

ROOM = 16
"""Entries by which the caches of a CPU grow: few empty ones to read, few times that all is moved."""

PIECE = 2**21
"""Bytes of keys and values that a CPU gathers at once: still near when they are read, and never as large as the memory
that the allocator takes anew from the system each time."""


class Together(NamedTuple):
    """One step of all rows, at the same position."""

    position: int  # of the new entry
    reach: int  # entries of each row to read
    bias: Tensor | None  # of scores (1, 1, reach); None where all of them have been read


class Apart(NamedTuple):
    """One step of some rows, each at its own position."""

    rows: Tensor  # those that enter (n,)
    slots: Tensor  # the place of each one's new entry (n,)
    reach: int  # entries of each row to read
    pieces: Sequence[Tensor | int]  # rows to gather at once, a row that is not moved as its number; () to read them all
    biases: Sequence[Tensor | None]  # of scores (rows, heads or 1, reach) of each piece, or of all; None as above
    spread: bool  # where all rows are read, whether only some of them ask


class Entries(NamedTuple):
    """What a stack of layers has read."""

    keys: list[Tensor]  # of each layer (R, H, room, head_dim)
    values: list[Tensor]


def on_cpu(like: Float[Tensor, "..."]) -> bool:
    """Whether room grows and is read whole."""
    return like.device.type == "cpu"


def by_products(like: Float[Tensor, "..."]) -> bool:
    """Whether attention is two batched products, which is faster there than PyTorch's kernel."""
    return on_cpu(like) and like.dtype == at_least_float32(like.dtype)


def attention(
    keys: Float[Tensor, "R H N head_dim"], values: Float[Tensor, "R H N head_dim"], at: Together | Apart
) -> Attend:
    """Attention of new entries (R or n, H, head_dim) of a layer, which are kept, to those of their own rows."""
    if isinstance(at, Together):
        return lambda q, k, v: _together(q, k, v, keys, values, at)
    return lambda q, k, v: _apart(q, k, v, keys, values, at)


def _together(
    q: Float[Tensor, "R H head_dim"],
    k: Float[Tensor, "R H head_dim"],
    v: Float[Tensor, "R H head_dim"],
    keys: Float[Tensor, "R H N head_dim"],
    values: Float[Tensor, "R H N head_dim"],
    at: Together,
) -> Float[Tensor, "R H head_dim"]:
    keys.narrow(2, at.position, 1).copy_(k[:, :, None])
    values.narrow(2, at.position, 1).copy_(v[:, :, None])
    return _mixed(q, keys[:, :, : at.reach], values[:, :, : at.reach], at.bias)


def _apart(
    q: Float[Tensor, "n H head_dim"],
    k: Float[Tensor, "n H head_dim"],
    v: Float[Tensor, "n H head_dim"],
    keys: Float[Tensor, "R H N head_dim"],
    values: Float[Tensor, "R H N head_dim"],
    at: Apart,
) -> Float[Tensor, "n H head_dim"]:
    keys[at.rows, :, at.slots] = k
    values[at.rows, :, at.slots] = v
    keys, values = keys[:, :, : at.reach], values[:, :, : at.reach]
    if not at.pieces:
        if not at.spread:
            return _mixed(q, keys, values, at.biases[0])
        asked = q.new_zeros(keys.shape[0], *q.shape[1:]).index_copy_(0, at.rows, q)
        return _mixed(asked, keys, values, at.biases[0]).index_select(0, at.rows)
    sizes = [1 if isinstance(rows, int) else len(rows) for rows in at.pieces]
    out = [
        _mixed(some, _of(keys, rows), _of(values, rows), bias)
        for some, rows, bias in zip(q.split(sizes), at.pieces, at.biases, strict=True)
    ]
    return out[0] if len(out) == 1 else torch.cat(out)


def _of(entries: Float[Tensor, "R *rest"], rows: Int[Tensor, " n"] | int) -> Float[Tensor, "n *rest"]:
    return entries[rows : rows + 1] if isinstance(rows, int) else entries.index_select(0, rows)


def _mixed(
    q: Float[Tensor, "R H head_dim"],
    keys: Float[Tensor, "R H N head_dim"],
    values: Float[Tensor, "R H N head_dim"],
    bias: Float[Tensor, "#R #H N"] | None,
) -> Float[Tensor, "R H head_dim"]:
    """The mean of values that queries find by the keys."""
    if not by_products(q):
        mask = None if bias is None else bias[:, :, None]
        return F.scaled_dot_product_attention(q[:, :, None], keys, values, attn_mask=mask)[:, :, 0]
    assert bias is not None
    reach, width = keys.shape[2:]
    keys, values = keys.view(-1, reach, width), values.view(-1, reach, width)
    scores = torch.baddbmm(bias.view(-1, 1, reach), q.reshape(-1, 1, width), keys.mT, alpha=width**-0.5)
    return torch.bmm(scores.softmax(-1), values).view(q.shape)


class _Cache:
    def __init__(self, layers: int, rows: int, length: int, heads: int, like: Float[Tensor, "... D"], *, ragged: bool):
        self.grows, self.most, width = on_cpu(like), length, like.shape[-1] // heads
        room = min(ROOM, length) if self.grows else length
        # filled, since what has not been read gets the weight 0, and 0 x NaN is no 0
        keys, values = ([like.new_zeros(rows, heads, room, width) for _ in range(layers)] for _ in range(2))
        self.entries = Entries(keys, values)
        of_each = (rows, heads if by_products(like) else 1) if ragged else (1, 1)
        self.bias = like.new_full((*of_each, room), -torch.inf)

    def keep(self, rows: int) -> None:
        """Goes on with the first `rows` rows alone."""
        self.entries = Entries(*([some[:rows] for some in kept] for kept in self.entries))
        self.bias = self.bias[:rows]

    def _reach(self, longest: int) -> int:
        """How many entries of each row attention reads so that it reads `longest`, for which room is made."""
        if not self.grows:
            return longest
        rows, heads, room, width = self.entries.keys[0].shape
        if longest <= room:
            return room
        empty = self.entries.keys[0].new_zeros(rows, heads, min(ROOM, self.most - room), width)
        for kept in self.entries:
            for layer, some in enumerate(kept):  # one by one: never twice the memory
                kept[layer] = torch.cat((some, empty), 2)
        self.bias = F.pad(self.bias, (0, empty.shape[2]), value=-torch.inf)
        return self.bias.shape[2]


class TokenCache(_Cache):
    """The cache of a stack in which all rows stand at the same position."""

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

    def append(self, position: int) -> Together:
        """A new entry for every row, at `position`, which follows the last one."""
        reach = self._reach(position + 1)
        if not self.grows:
            return Together(position, reach, None)
        self.bias.select(2, position).fill_(0)
        return Together(position, reach, self.bias)


class RaggedCache(_Cache):
    """The cache of a stack in which each row has read as many entries as it has: rows enter a step as they please.

    The rows that enter are gathered from those that do not; a CPU does it in pieces, and does not move a row that is a
    piece by itself. Attention goes over all rows where all enter; on a CPU where most do, which is faster than to move
    most.
    """

    def __init__(self, layers: int, rows: int, length: int, heads: int, like: Float[Tensor, "... D"]):
        """As `TokenCache`."""
        super().__init__(layers, rows, length, heads, like, ragged=True)
        self.lengths = np.zeros(rows, dtype=np.int64)

    def keep(self, rows: int) -> None:
        """Goes on with the first `rows` rows alone."""
        super().keep(rows)
        self.lengths = self.lengths[:rows]

    def append(self, rows: Int[np.ndarray, " n"]) -> Apart:
        """A new entry for each of `rows`."""
        slots = self.lengths[rows]
        self.lengths[rows] += 1
        reach = self._reach(min(max(int(slots.max()) + 1, 2), self.most))  # sizes of 1 would be compiled by themselves
        index, slot = sent(torch.from_numpy(np.stack([rows, slots])), self.bias.device)
        self.bias[index, :, slot] = 0
        bias = self.bias[:, :, :reach]
        if self.grows and 2 * len(rows) > len(self.lengths):
            return Apart(index, slot, reach, (), (bias,), spread=True)
        if not self.grows and np.array_equal(rows, np.arange(len(self.lengths))):
            filled = self.lengths.min() >= reach  # without a bias PyTorch has faster kernels
            return Apart(index, slot, reach, (), (None if filled else bias,), spread=False)
        at_once = max(1, PIECE // (2 * self.entries.keys[0][0].nbytes)) if self.grows else len(rows)
        alone = at_once == 1 < len(rows)
        pieces: Sequence[Tensor | int] = rows.tolist() if alone else index.split(at_once)
        return Apart(index, slot, reach, tuple(pieces), tuple(_of(bias, some) for some in pieces), spread=False)
