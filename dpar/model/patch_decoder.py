"""From patches back to tokens (Section 3.2.4, Eqs. 6-7)."""

from jaxtyping import Float, Int
from torch import Tensor, nn

from dpar.model.layers import Attend, Block, Head, Linear, RMSNorm


class PatchDecoderLayer(nn.Module):
    """The state of its patch is added to each token (Eq. 6), then a causal transformer layer over tokens (Eq. 7)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm = RMSNorm(width)
        self.projection = Linear(width, width)
        self.block = Block(width, heads)

    def forward(
        self,
        tokens: Float[Tensor, "B T D"],
        patches: Float[Tensor, "M D"],
        rows: Int[Tensor, "B T"],
        rope: Float[Tensor, "... half 2"],
        attend: Attend,
    ) -> Float[Tensor, "B T D"]:
        return self.block(self.add_patch_state(tokens, patches, rows), rope, attend)

    def add_patch_state(
        self, tokens: Float[Tensor, "B T D"], patches: Float[Tensor, "M D"], rows: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B T D"]:
        """Tokens with the states of their patches added (Eq. 6).

        Widened before they are copied to the tokens: the gradients of a patch's tokens are then summed in float32.
        """
        states = self.projection(self.norm(patches)).to(tokens.dtype)
        return tokens + states.index_select(0, rows.flatten()).view_as(tokens)


class PatchDecoder(nn.Module):
    """Logits of every token from its patch and the tokens before it."""

    def __init__(self, width: int, heads: int, layers: int, vocab_size: int):
        super().__init__()
        self.layers = nn.ModuleList(PatchDecoderLayer(width, heads) for _ in range(layers))
        self.norm = RMSNorm(width)
        self.output = Head(width, vocab_size)

    def forward(
        self,
        tokens: Float[Tensor, "B T D"],
        patches: Float[Tensor, "M D"],
        rows: Int[Tensor, "B T"],
        rope: Float[Tensor, "T half 2"],
        attend: Attend,
    ) -> Float[Tensor, "B T V"]:
        """Logits of x_0 .. x_{T-1} (Eqs. 6-7).

        Args:
            tokens: states at [start, x_0 .. x_{T-2}].
            patches: outputs of the patch transformer, packed.
            rows: for position t, the packed row of the patch of x_t, the token that is *predicted* there.
            rope: rotations of the positions' input tokens.
            attend: causal attention within an image.
        """
        for layer in self.layers:
            tokens = layer(tokens, patches, rows, rope, attend)
        return self.output(self.norm(tokens))
