"""DPAR: tokens to patches, a causal transformer over patches, patches to tokens (Section 3.2, Algorithm 1)."""

from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from dpar.experiment.settings import Pooling
from dpar.model.attention import Backend, causal_attention
from dpar.model.layers import INIT_STD, ClassEmbedding, Embedding, at_least_float32
from dpar.model.llamagen import TransformerConfig
from dpar.model.patch_decoder import PatchDecoder
from dpar.model.patch_encoder import PatchEncoder
from dpar.model.patch_transformer import PatchTransformer
from dpar.model.rope import Position, grid_rope, patch_rope, zero_rope
from dpar.patches.packing import PatchLayout
from dpar.weights import load_model


class DPARConfig(TransformerConfig):
    """The sizes of a DPAR; `layers` are the patch transformer's."""

    num_classes: int = Field(gt=0)
    encoder_layers: int = Field(1, gt=0)
    decoder_layers: int = Field(gt=0)
    position: Position = "dynamic"
    query_pooling: Pooling = Field("max", exclude_if=lambda pooling: pooling == "max")
    attention: Backend | Literal["auto"] = Field("auto", description="back end of packed attention")


class DPAR(nn.Module):
    """An autoregressive image model: encoder of tokens, transformer over patches, decoder of tokens (Algorithm 1)."""

    Config = DPARConfig

    def __init__(self, config: DPARConfig):
        super().__init__()
        self.config = config
        width, heads = config.width, config.heads
        self.cls_embedding = ClassEmbedding(config.num_classes, width)
        self.tok_embeddings = Embedding(config.vocab_size, width)
        self.start = nn.Parameter(torch.empty(width).normal_(std=INIT_STD))
        self.encoder = PatchEncoder(width, heads, config.encoder_layers, config.query_pooling)
        self.patch_transformer = PatchTransformer(width, heads, config.layers, config.dropout)
        self.decoder = PatchDecoder(width, heads, config.decoder_layers, config.vocab_size)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "DPAR":
        """The network in a model folder, or in one that `dpar export` wrote; `dpar.Generator` draws with it.

        Raises:
            InputError: the folder holds something else, or weights that are damaged.
        """
        return load_model(folder, "dpar")

    @property
    def null_label(self) -> int:
        """The label that means "no class"."""
        return self.config.num_classes

    def rope(self) -> Float[Tensor, "T half 2"]:
        """Rotations of the token stack's positions: the start vector (zero), then x_0 .. x_{T-2}."""
        device, dtype = self.start.device, at_least_float32(self.start.dtype)
        cells = grid_rope(*self.config.grid, self.config.head_dim, device=device, dtype=dtype)[:-1]
        return torch.cat((zero_rope(1, self.config.head_dim, device=device, dtype=dtype), cells))

    def patch_rope(self, first: Int[Tensor, "*M"], last: Int[Tensor, "*M"]) -> Float[Tensor, "*M half 2"]:
        """Rotations of patches by the raster indices of their first and last tokens, in the model's scheme."""
        columns = self.config.grid[1]
        return patch_rope(
            first // columns,
            first % columns,
            last % columns,
            self.config.head_dim,
            self.config.position,
            dtype=at_least_float32(self.start.dtype),
        )

    def forward(
        self, tokens: Int[Tensor, "B T"], labels: Int[Tensor, " B"], starts: Bool[Tensor, "B T"] | PatchLayout
    ) -> Float[Tensor, "B T V"]:
        """Logits of x_0 .. x_{T-1}, each from the class and the tokens before it (Algorithm 1, lines 4-6).

        Args:
            tokens: codes of whole images; the last one of each is never an input.
            labels: `null_label` where there is no class.
            starts: where patches open, on the host or the device, or their layout if it is known already. Whether x_t
                opens a patch may depend on x_<t only (Section 3.2.1), or the model would see what it predicts.
        """
        layout = (starts if isinstance(starts, PatchLayout) else PatchLayout.from_starts(starts)).to(tokens.device)
        rope = self.rope()
        states, patches = self.encoder(
            self.tok_embeddings(tokens[:, :-1]), rope[1:], causal_attention, layout.rows[:, :-1], layout.packed.total
        )
        outputs = self.patch_transformer(
            self.cls_embedding(labels),
            patches,
            self.patch_rope(layout.first, layout.last),
            layout.packed,
            self.config.attention,
        )
        shifted = torch.cat((self.start.expand(len(tokens), 1, -1), states), 1)
        return self.decoder(shifted, outputs, layout.rows, rope, causal_attention)
