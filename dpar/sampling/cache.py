"""Keys and values of what has been read: one position a step for all rows, or a length of its own for each row."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class _Storage:
    """Room for the keys and values of every layer, taken once."""

    def __init__(self, layers: int, rows: int, length: int, heads: int, like: Float[Tensor, "..."]):
        """Args:
        layers: blocks that share the positions.
        rows: sequences.
        length: the most positions a row will hold.
        like: a weight; dtype and device are taken from it. Its width is heads x head_dim.
        """
        shape = (layers, rows, heads, length, like.shape[-1] // heads)
        self.keys = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.values = torch.zeros_like(self.keys)

    def keep(self, rows: int) -> None:
        """Goes on with the first `rows` rows alone."""
        self.keys, self.values = self.keys[:, :rows], self.values[:, :rows]


class TokenCache(_Storage):
    """The cache of a stack in which all rows stand at the same position."""

    def attend(self, layer: int, position: int) -> Attend:
        """Attention of the token at `position` of every row to itself and all before it; its key and value are kept."""
        keys, values = self.keys[layer], self.values[layer]

        def attend(
            q: Float[Tensor, "R 1 H Dh"], k: Float[Tensor, "R 1 H Dh"], v: Float[Tensor, "R 1 H Dh"]
        ) -> Float[Tensor, "R 1 H Dh"]:
            keys[:, :, position] = k[:, 0]
            values[:, :, position] = v[:, 0]
            until = position + 1
            out = F.scaled_dot_product_attention(q.transpose(1, 2), keys[:, :, :until], values[:, :, :until])
            return out.transpose(1, 2)

        return attend


class RaggedCache(_Storage):
    """The cache of a stack in which each row has read as many entries as it has: rows enter a step as they please."""

    def __init__(self, layers: int, rows: int, length: int, heads: int, like: Float[Tensor, "..."]):
        super().__init__(layers, rows, length, heads, like)
        self.lengths = np.zeros(rows, dtype=np.int64)

    def keep(self, rows: int) -> None:
        super().keep(rows)
        self.lengths = self.lengths[:rows]

    def append(self, rows: Int[np.ndarray, " n"]) -> Callable[[int], Attend]:
        """A new entry for each of `rows` (rising): layer -> attention of that entry to its own row, itself included."""
        slots = self.lengths[rows]
        self.lengths[rows] += 1
        until = int(slots.max()) + 1
        device = self.keys.device
        everyone = len(rows) == len(self.lengths)
        index, slot = torch.from_numpy(np.stack([rows, slots])).to(device, non_blocking=True)
        bias = None
        if slots.min() + 1 < until:
            unseen = torch.arange(until, device=device) > slot[:, None]
            bias = torch.zeros(unseen.shape, dtype=self.keys.dtype, device=device).masked_fill_(unseen, -torch.inf)
            bias = bias[:, None, None]

        def of_layer(layer: int) -> Attend:
            keys, values = self.keys[layer], self.values[layer]

            def attend(
                q: Float[Tensor, "n 1 H Dh"], k: Float[Tensor, "n 1 H Dh"], v: Float[Tensor, "n 1 H Dh"]
            ) -> Float[Tensor, "n 1 H Dh"]:
                keys[index, :, slot] = k[:, 0]
                values[index, :, slot] = v[:, 0]
                past_keys, past_values = keys[:, :, :until], values[:, :, :until]
                if not everyone:
                    past_keys, past_values = past_keys.index_select(0, index), past_values.index_select(0, index)
                out = F.scaled_dot_product_attention(q.transpose(1, 2), past_keys, past_values, attn_mask=bias)
                return out.transpose(1, 2)

            return attend

        return of_layer
