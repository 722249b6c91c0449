"""From tokens to patches (Section 3.2.2, Eqs. 4-5)."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dpar.experiment.settings import Pooling
from dpar.model.layers import Attend, Block, Linear, RMSNorm, at_least_float32


def segment_max(values: Float[Tensor, "N D"], ids: Int[Tensor, " N"], count: int) -> Float[Tensor, "count D"]:
    """For each of `count` segments the largest of its values, channel by channel; 0 for a segment without members."""
    index = ids[:, None].expand_as(values)
    return values.new_zeros(count, values.shape[1]).scatter_reduce(0, index, values, "amax", include_self=False)


def segment_mean(values: Float[Tensor, "N D"], ids: Int[Tensor, " N"], count: int) -> Float[Tensor, "count D"]:
    """For each of `count` segments the mean of its values; 0 for a segment without members."""
    index = ids[:, None].expand_as(values)
    return values.new_zeros(count, values.shape[1]).scatter_reduce(0, index, values, "mean", include_self=False)


POOLINGS: dict[Pooling, Callable[[Tensor, Tensor, int], Tensor]] = {"max": segment_max, "mean": segment_mean}


def segment_softmax(scores: Float[Tensor, "N H"], ids: Int[Tensor, " N"], count: int) -> Float[Tensor, "N H"]:
    """`scores` as weights that sum to 1 over each segment."""
    largest = segment_max(scores.detach(), ids, count)
    powers = (scores - largest.index_select(0, ids)).exp()
    sums = powers.new_zeros(count, powers.shape[1]).index_add(0, ids, powers)
    return powers / sums.index_select(0, ids)


class PatchCrossAttention(nn.Module):
    """Each patch gathers from its own tokens, and from no others (Eq. 5)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query_norm = RMSNorm(width)
        self.token_norm = RMSNorm(width)
        self.wq = Linear(width, width)
        self.wk = Linear(width, width)
        self.wv = Linear(width, width)
        self.wo = Linear(width, width)

    def forward(
        self, query: Float[Tensor, "M D"], states: Float[Tensor, "N D"], ids: Int[Tensor, " N"]
    ) -> Float[Tensor, "M D"]:
        """The patch states: `query` plus attention over each patch's tokens, as scores of (patch, token) pairs only.

        Args:
            query: states of the patches so far.
            states: states of the tokens.
            ids: for each token, the row of its patch in `query`.
        """
        q = self.wq(self.query_norm(query)).unflatten(-1, (self.heads, -1))
        normed = self.token_norm(states)
        k, v = (linear(normed).unflatten(-1, (self.heads, -1)) for linear in (self.wk, self.wv))
        dtype = at_least_float32(q.dtype)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
        scores = (q.index_select(0, ids) * k).sum(-1) * q.shape[-1] ** -0.5
        weights = segment_softmax(scores, ids, len(query))
        gathered = torch.zeros_like(q).index_add(0, ids, weights[..., None] * v)
        return query + self.wo(gathered.flatten(-2).type_as(query))


class PatchEncoderLayer(nn.Module):
    """A causal transformer layer over all earlier tokens (Eq. 4), then patches gather from their tokens (Eq. 5)."""

    def __init__(self, width: int, heads: int, pooling: Pooling):
        super().__init__()
        self.pool = POOLINGS[pooling]
        self.block = Block(width, heads)
        self.cross_attention = PatchCrossAttention(width, heads)

    def forward(
        self,
        tokens: Float[Tensor, "B N D"],
        patches: Float[Tensor, "M D"] | None,
        rope: Float[Tensor, "N half 2"],
        attend: Attend,
        ids: Int[Tensor, "B*N"],
        count: int,
    ) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "count D"]]:
        """The token and patch states after this layer from those before it; the first has no patch states yet."""
        tokens = self.block(tokens, rope, attend)
        return tokens, self.gather(tokens.flatten(0, 1), patches, ids, count)

    def gather(
        self, states: Float[Tensor, "N D"], patches: Float[Tensor, "M D"] | None, ids: Int[Tensor, " N"], count: int
    ) -> Float[Tensor, "count D"]:
        """The patch states after this layer from the token states of it and the patch states before it (Eq. 5)."""
        return self.cross_attention(self.pool(states, ids, count) if patches is None else patches, states, ids)


class PatchEncoder(nn.Module):
    """Token states and patch states; a patch's first query is its tokens' states, pooled channel by channel.

    The paper does not say how that query is made. Here it is the maximum; the mean is there to be compared with it.
    """

    def __init__(self, width: int, heads: int, layers: int, pooling: Pooling = "max"):
        super().__init__()
        self.layers = nn.ModuleList(PatchEncoderLayer(width, heads, pooling) for _ in range(layers))

    def forward(
        self,
        tokens: Float[Tensor, "B N D"],
        rope: Float[Tensor, "N half 2"],
        attend: Attend,
        rows: Int[Tensor, "B N"],
        count: int,
    ) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "count D"]]:
        """The token states and the states of `count` packed patches (Eqs. 4-5).

        Args:
            tokens: embeddings of x_0 .. x_{T-2}.
            rope: rotations of those tokens.
            attend: causal attention within an image.
            rows: for each token, the packed row of its patch.
            count: patches of all images. A row without tokens (the last patch of an image, if x_{T-1} is alone in it)
                is a number without meaning, as every last patch is: none of them is an input of anything.
        """
        ids, patches = rows.flatten(), None
        for layer in self.layers:
            tokens, patches = layer(tokens, patches, rope, attend, ids, count)
        assert patches is not None
        return tokens, patches
