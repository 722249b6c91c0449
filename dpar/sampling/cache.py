"""Keys and values of what has been read: one position a step for all rows, or a length of its own for each row."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from dpar.device import sent

# queries, keys and values of one entry of each row (R, 1, H, head_dim) -> mixed values of the same shape. A function
# that is made anew for each layer of each step has no shapes in its signature: Python would work them out every time,
# which at the demo's sizes took longer than a matrix product.
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

# Bytes of keys and values to which a CPU attends at once: what has been gathered is still near when it is read, and is
# never as large as the memory that the allocator takes anew from the system each time.
PIECE = 2**19


class TokenCache:
    """The cache of a stack in which all rows stand at the same position."""

    def __init__(self, layers: int, rows: int, length: int, heads: int, like: Float[Tensor, "..."]):
        """Room for the keys and values of every layer, taken once.

        Args:
            layers: blocks that share the positions.
            rows: sequences.
            length: the most positions a row will hold.
            like: a weight; dtype and device are taken from it. Its width is heads x head_dim.
        """
        self.keys, self.values = like.new_empty(2, layers, rows, heads, length, like.shape[-1] // heads)

    def keep(self, rows: int) -> None:
        """Goes on with the first `rows` rows alone."""
        self.keys, self.values = self.keys[:, :rows], self.values[:, :rows]

    def attend(self, layer: int, position: int) -> Attend:
        """Attention of the token at `position` of every row to itself and all before it; its key and value are kept."""
        keys, values = self.keys[layer], self.values[layer]

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys[:, :, position] = k[:, 0]
            values[:, :, position] = v[:, 0]
            until = position + 1
            out = F.scaled_dot_product_attention(q.transpose(1, 2), keys[:, :, :until], values[:, :, :until])
            return out.transpose(1, 2)

        return attend


class RaggedCache:
    """The cache of a stack in which each row has read as many entries as it has: rows enter a step as they please.

    The rows that enter are gathered from those that do not, which moves all that they have read. So key and value of an
    entry lie side by side, and entries of a row one after the other: what is moved is one run of memory a row. A CPU
    attends to rows of like length in pieces of `PIECE` bytes, which stay in its own memory, and a row of that size by
    itself, without moving it.
    """

    def __init__(self, layers: int, rows: int, length: int, heads: int, like: Float[Tensor, "..."]):
        """As `TokenCache`; filled, since what a row has not read is hidden by a weight of 0, and 0 x NaN is no 0."""
        self.entries = like.new_zeros(layers, rows, length, 2, heads, like.shape[-1] // heads)
        self.bias = like.new_full((rows, length), -torch.inf)  # of attention's scores: 0 where an entry has been read
        self.lengths = np.zeros(rows, dtype=np.int64)
        self.at_once = max(1, PIECE // self.entries[0, 0, 0].nbytes) if like.device.type == "cpu" else None  # entries

    def keep(self, rows: int) -> None:
        """Goes on with the first `rows` rows alone."""
        self.entries, self.bias, self.lengths = self.entries[:, :rows], self.bias[:rows], self.lengths[:rows]

    def append(self, rows: Int[np.ndarray, " n"]) -> Callable[[int], Attend]:
        """A new entry for each of `rows`: layer -> attention of that entry to its own row, itself included.

        Args:
            rows: in any order; the fastest is by length.
        """
        slots = self.lengths[rows]
        self.lengths[rows] += 1
        index, place = sent(torch.from_numpy(np.stack([rows, rows * self.bias.shape[1] + slots])), self.bias.device)
        self.bias.view(-1).index_fill_(0, place, 0)
        sizes = _pieces(self.lengths[rows].tolist(), self.at_once)
        parts = zip(np.split(rows, np.cumsum(sizes[:-1])), index.split(sizes), strict=True)
        pieces = [self._piece(some, place_of) for some, place_of in parts]

        def of_layer(layer: int) -> Attend:
            entries = self.entries[layer]

            def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                entries.flatten(0, 1).index_copy_(0, place, torch.cat((k, v), 1))
                out = [
                    F.scaled_dot_product_attention(some, *read(entries).transpose(1, 3).unbind(2), attn_mask=bias)
                    for some, (read, bias) in zip(q.transpose(1, 2).split(sizes), pieces, strict=True)
                ]
                return (out[0] if len(out) == 1 else torch.cat(out)).transpose(1, 2)

            return attend

        return of_layer

    def order(self, rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The same rows in the order in which `append` is fastest."""
        return rows if self.at_once is None else rows[self.lengths[rows].argsort(kind="stable")]

    def _piece(
        self, rows: Int[np.ndarray, " n"], index: Int[Tensor, " n"]
    ) -> tuple[Callable[[Tensor], Tensor], Tensor | None]:
        """What takes that which `rows` have read from a layer's entries, and the bias that hides the padding of it."""
        lengths, first = self.lengths[rows], int(rows[0])
        until = int(lengths.max())
        adjacent = bool((np.diff(rows) == 1).all())

        def entering(read: Tensor) -> Tensor:
            return read[first : first + len(rows), :until] if adjacent else read[:, :until].index_select(0, index)

        return entering, entering(self.bias)[:, None, None] if lengths.min() < until else None


def _pieces(lengths: Sequence[int], at_once: int | None) -> list[int]:
    """Rows of each piece, where neighbours are padded to the longest of a piece, of at most `at_once` entries."""
    if at_once is None:
        return [len(lengths)]
    sizes, longest = [0], 0
    for length in lengths:
        longest = max(longest, length)
        if sizes[-1] and (sizes[-1] + 1) * longest > at_once:
            sizes.append(0)
            longest = length
        sizes[-1] += 1
    return sizes
