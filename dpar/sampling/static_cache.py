"""KV caches of one size at fixed addresses, for code that a GPU repeats without the host: captured CUDA graphs.

Where the new entries go is a tensor, and so is how many entries each row has. Attention reads the filled entries where
they lie, without gathering rows, by PyTorch's variable-length kernel: its offsets into the keys are those of the rows
that enter. Where that kernel does not serve (float32, an older card, a CPU), masked attention reads the entries of
all rows up to a length that the host knows, in steps of `STRIDE`.

A row more than there are sequences takes what is written for places that no sequence fills (`scratch`).
"""

import inspect
import logging
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from dpar.model.layers import Attend

STRIDE = 16
"""Entries between the lengths that masked attention reads; each is code of its own in a captured graph."""

logger = logging.getLogger(__name__)


class InPlaceSlots(NamedTuple):
    """One step of n rows for the variable-length kernel, one query each."""

    entries: Int[Tensor, " n"]  # the new entries' places among those of all rows
    query_offsets: Int[Tensor, " n+1"]
    key_offsets: Int[Tensor, " n+1"]  # of each row's first entry; nothing follows the last
    lengths: Int[Tensor, " n"]  # entries of each row, the new one included
    capacity: int


class MaskedSlots(NamedTuple):
    """One step of n rows for masked attention over all rows, or over the first n."""

    entries: Int[Tensor, " n"]  # as above
    row_indices: Int[Tensor, " n"] | None  # None: the first n rows
    length: int  # entries of each row to read
    bias: Float[Tensor, "#R 1 1 length"]  # of scores


StaticSlots = InPlaceSlots | MaskedSlots


def static_attention(
    keys: Float[Tensor, "R capacity H head_dim"], values: Float[Tensor, "R capacity H head_dim"], slots: StaticSlots
) -> Attend:
    """Attention of new entries (n, H, head_dim) of a layer, which are stored, to those of their own rows."""
    if isinstance(slots, InPlaceSlots):
        return lambda q, k, v: _attend_in_place(q, k, v, keys, values, slots)
    return lambda q, k, v: _attend_masked(q, k, v, keys, values, slots)


def _attend_in_place(
    q: Float[Tensor, "n H head_dim"],
    k: Float[Tensor, "n H head_dim"],
    v: Float[Tensor, "n H head_dim"],
    keys: Float[Tensor, "R capacity H head_dim"],
    values: Float[Tensor, "R capacity H head_dim"],
    slots: InPlaceSlots,
) -> Float[Tensor, "n H head_dim"]:
    keys, values = keys.flatten(0, 1), values.flatten(0, 1)
    keys.index_copy_(0, slots.entries, k.to(keys.dtype))
    values.index_copy_(0, slots.entries, v.to(values.dtype))
    found = VARLEN(
        q.to(keys.dtype),
        keys,
        values,
        slots.query_offsets,
        slots.key_offsets,
        1,
        slots.capacity,
        seqused_k=slots.lengths,
    )
    assert isinstance(found, Tensor)
    return found.type_as(q)


def _flash_attention(
    q: Float[Tensor, "n H head_dim"],
    keys: Float[Tensor, "N H head_dim"],
    values: Float[Tensor, "N H head_dim"],
    query_offsets: Int[Tensor, " n+1"],
    key_offsets: Int[Tensor, " n+1"],
    longest_query: int,
    longest: int,
    *,
    seqused_k: Int[Tensor, " n"],
) -> Float[Tensor, "n H head_dim"]:
    """The operation below `varlen_attn`, which takes lengths where that one does not yet: in PyTorch 2.10 and 2.11."""
    offsets = query_offsets, key_offsets, longest_query, longest
    attend = torch.ops.aten._flash_attention_forward
    return attend(q, keys, values, *offsets, 0.0, False, False, seqused_k=seqused_k)[0]


VARLEN = varlen_attn if "seqused_k" in inspect.signature(varlen_attn).parameters else _flash_attention


def _attend_masked(
    q: Float[Tensor, "n H head_dim"],
    k: Float[Tensor, "n H head_dim"],
    v: Float[Tensor, "n H head_dim"],
    keys: Float[Tensor, "R capacity H head_dim"],
    values: Float[Tensor, "R capacity H head_dim"],
    slots: MaskedSlots,
) -> Float[Tensor, "n H head_dim"]:
    precision = q.dtype
    q, k, v = (x.to(keys.dtype) for x in (q, k, v))
    keys.flatten(0, 1).index_copy_(0, slots.entries, k)
    values.flatten(0, 1).index_copy_(0, slots.entries, v)
    if slots.row_indices is not None:
        q = q.new_zeros(len(keys), *q.shape[1:]).index_copy_(0, slots.row_indices, q)
    keys, values = (x[: len(q), : slots.length].transpose(1, 2) for x in (keys, values))
    out = F.scaled_dot_product_attention(q[:, :, None], keys, values, attn_mask=slots.bias)[:, :, 0].to(precision)
    return out if slots.row_indices is None else out.index_select(0, slots.row_indices)


class StaticCache:
    """Keys and values of a stack of layers: (R + 1, capacity, H, head_dim) of each, the last row for scratch."""

    def __init__(
        self, layers: int, rows: int, length: int, heads: int, like: Float[Tensor, "... D"], *, in_place: bool
    ):
        """Args:
        layers: blocks that share the positions.
        rows: sequences (R).
        length: the most entries a row will hold.
        heads: of attention (H).
        like: a weight; dtype and device are taken from it. Its width is heads x head_dim.
        in_place: whether the variable-length kernel reads them, see `reads_in_place`.
        """
        self.in_place, self.scratch = in_place, rows
        # never read whole: code that is compiled for a part would be compiled again for all
        self.capacity = _in_strides(length) + 1
        shape = (rows + 1, self.capacity, heads, like.shape[-1] // heads)
        self.keys, self.values = ([like.new_zeros(shape) for _ in range(layers)] for _ in range(2))
        self.first_entries = torch.arange(rows + 2, device=like.device) * self.capacity
        self.counting = torch.arange(max(rows + 2, self.capacity), dtype=torch.int32, device=like.device)
        self.bias_like = like.new_empty(0)

    @property
    def entries(self) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values of each layer."""
        return self.keys, self.values

    def read_length(self, longest: int) -> int | None:
        """Entries per row that attention reads to cover `longest`; None where the device alone knows the lengths."""
        return None if self.in_place else _in_strides(longest)

    def lockstep(self, position: Int[Tensor, "1"], rows: int, read_length: int | None) -> StaticSlots:
        """A new entry at `position` of each of the first `rows` rows."""
        entries = self.first_entries[:rows] + position
        if read_length is None:
            offsets = self.first_entries[: rows + 1].int()
            lengths = (position + 1).int().expand(rows).contiguous()
            return InPlaceSlots(entries, self.counting[: rows + 1], offsets, lengths, self.capacity)
        return MaskedSlots(entries, None, read_length, self._bias(position + 1, read_length))

    def ragged(
        self,
        row_indices: Int[Tensor, " n"],
        positions: Int[Tensor, " n"],
        lengths: Int[Tensor, " R"],
        read_length: int | None,
    ) -> StaticSlots:
        """A new entry at `positions` of the rows `row_indices`, of which scratch may be several.

        Args:
            lengths: entries of each row, scratch included, with the new ones; for masked attention.
        """
        first = self.first_entries.index_select(0, row_indices)
        entries = first + positions
        if read_length is None:
            offsets = F.pad(first.int(), (0, 1))
            queries = self.counting[: len(row_indices) + 1]
            return InPlaceSlots(entries, queries, offsets, (positions + 1).int(), self.capacity)
        return MaskedSlots(entries, row_indices, read_length, self._bias(lengths, read_length))

    def _bias(self, lengths: Int[Tensor, " R"], read_length: int) -> Float[Tensor, "R 1 1 N"]:
        empty = self.counting[:read_length] >= lengths[:, None]
        return self.bias_like.new_zeros(empty.shape).masked_fill_(empty, -torch.inf)[:, None, None]


def _in_strides(length: int) -> int:
    return -(-length // STRIDE) * STRIDE


@cache
def reads_in_place(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the variable-length kernel reads rows where they lie, by trial: rows out of order, lengths of their own.

    The choice is logged once. It wants half precision.
    """
    if device.type != "cuda":
        return False
    reason = _trial(device, dtype, head_dim)
    found = "reads in place" if reason is None else f"is masked: {reason}"
    logger.info("cached attention %s (%s, %s)", found, device, dtype)
    return reason is None


def _trial(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why the kernel does not serve, or None."""
    rows, heads, positions = torch.tensor([2, 0, 3, 3, 1]), 2, torch.tensor([3, 20, 0, 0, 7])
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, len(rows), heads, head_dim, generator=generator).to(device, dtype)
    lengths = torch.zeros(4, dtype=torch.long).index_copy_(0, rows, positions + 1)
    outs = []
    try:
        for in_place in (True, False):
            cached = StaticCache(1, 3, 21, heads, q.flatten(1), in_place=in_place)
            for values in (cached.keys[0], cached.values[0]):
                values.copy_(torch.randn(values.shape, generator=torch.Generator().manual_seed(1)))
            slots = cached.ragged(rows.to(device), positions.to(device), lengths.to(device), cached.read_length(21))
            outs.append(static_attention(cached.keys[0], cached.values[0], slots)(q, k, v))
    except (RuntimeError, TypeError, ValueError) as error:
        return str(error).strip().splitlines()[0]
    found, expected = (out[positions.to(device) > 0].float() for out in outs)
    return None if torch.allclose(found, expected, atol=0.02, rtol=0.02) else "it gives other numbers than masked"
