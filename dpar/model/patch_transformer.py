"""The large causal transformer, over patches (Section 3.2.3)."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from dpar.model.attention import Backend, attention_dtype, packed_attention
from dpar.model.layers import Block
from dpar.patches.packing import PackedLengths


def shift_right(
    first: Float[Tensor, "B *features"], rest: Float[Tensor, "M *features"], packed: PackedLengths
) -> Float[Tensor, "M *features"]:
    """Each packed sequence shifted right by one: `first` in front, the last of `rest` dropped."""
    return rest.roll(1, 0).index_copy(0, packed.cu_seqlens[:-1].long(), first)


class PatchTransformer(nn.Module):
    """Causal blocks over [class, P_0 .. P_{M-2}] of each image; images of different M lie end to end."""

    def __init__(self, width: int, heads: int, layers: int, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))

    def forward(
        self,
        classes: Float[Tensor, "B D"],
        patches: Float[Tensor, "M D"],
        rope: Float[Tensor, "M half 2"],
        packed: PackedLengths,
        backend: Backend | Literal["auto"] = "auto",
    ) -> Float[Tensor, "M D"]:
        """The context of each patch: the output at the class for P_0, at P_{m-1} for P_m.

        Args:
            classes: the class token of each image.
            patches: the encoder's patch states; the last of an image is not used.
            rope: rotations of the patches.
            packed: patches per image.
            backend: of packed attention.
        """
        rope = shift_right(rope.new_zeros(len(classes), *rope.shape[1:]), rope, packed)
        attend = packed_attention(packed, backend, dtype=attention_dtype(classes))
        x = self.dropout(shift_right(classes, patches, packed))
        for layer in self.layers:
            x = layer(x, rope, attend)
        return x
