"""LlamaGen's decoder-only transformer: the baseline, the entropy model, and the names of the official weights."""

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from dpar.experiment.settings import Settings
from dpar.model.attention import causal_attention
from dpar.model.layers import Block, ClassEmbedding, Embedding, Head, RMSNorm, at_least_float32
from dpar.model.rope import grid_rope, zero_rope


class TransformerConfig(Settings):
    """Common sizes of LlamaGen and DPAR."""

    vocab_size: int = Field(gt=1)
    grid: tuple[int, int] = Field(description="rows and columns of tokens per image")
    width: int = Field(gt=0)
    heads: int = Field(gt=0)
    layers: int = Field(gt=0)
    dropout: float = Field(0.1, ge=0, lt=1)
    class_dropout: float = Field(0.1, ge=0, le=1, description="share of labels the trainer replaces by the null class")

    @model_validator(mode="after")
    def _sizes_fit(self) -> "TransformerConfig":
        if self.width % self.heads or self.head_dim % 16:
            raise ValueError(f"width {self.width} / heads {self.heads} must be a whole multiple of 16")
        if min(self.grid) < 1 or self.tokens < 2:
            raise ValueError(f"grid {self.grid} must have at least two tokens")
        return self

    @property
    def head_dim(self) -> int:
        """Channels per head."""
        return self.width // self.heads

    @property
    def tokens(self) -> int:
        """Tokens per image (T)."""
        return self.grid[0] * self.grid[1]

    @property
    def outputs(self) -> int:
        """Numbers that the head gives for each position."""
        return self.vocab_size


class LlamaGenConfig(TransformerConfig):
    """The sizes of a LlamaGen; without `num_classes` it is unconditional and has no class token."""

    num_classes: int | None = Field(None, gt=0)


class LlamaGen(nn.Module):
    """A causal transformer over the tokens of an image in raster order (Eq. 1)."""

    Config = LlamaGenConfig

    def __init__(self, config: LlamaGenConfig):
        super().__init__()
        self.config = config
        if config.num_classes is not None:
            self.cls_embedding = ClassEmbedding(config.num_classes, config.width)
        self.tok_embeddings = Embedding(config.vocab_size, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(Block(config.width, config.heads, config.dropout) for _ in range(config.layers))
        self.norm = RMSNorm(config.width)
        self.output = Head(config.width, config.vocab_size)

    @property
    def null_label(self) -> int:
        """The label that means "no class".

        Raises:
            ValueError: the model is unconditional.
        """
        if self.config.num_classes is None:
            raise ValueError("an unconditional model has no null label")
        return self.config.num_classes

    def rope(self) -> Float[Tensor, "N half 2"]:
        """Rotations of the input positions: the class token (zero) if there is one, then x_0 .. x_{T-2}."""
        device, dtype = self.output.weight.device, at_least_float32(self.output.weight.dtype)
        cells = grid_rope(*self.config.grid, self.config.head_dim, device=device, dtype=dtype)[:-1]
        if self.config.num_classes is None:
            return cells
        return torch.cat((zero_rope(1, self.config.head_dim, device=device, dtype=dtype), cells))

    def forward(self, tokens: Int[Tensor, "B T"], labels: Int[Tensor, " B"] | None = None) -> Float[Tensor, "B N V"]:
        """Logits of x_0 .. x_{T-1} from [class, x_0 .. x_{T-2}]; without class, of x_1 .. from x_0 .. x_{T-2} (Eq. 1).

        Args:
            tokens: codes of whole images; the last one of each is never an input.
            labels: `null_label` where there is no class; None for an unconditional model, and only then.
        """
        assert (labels is None) == (self.config.num_classes is None), "labels and num_classes go together"
        x = self.tok_embeddings(tokens[:, :-1])
        if labels is not None:
            x = torch.cat((self.cls_embedding(labels)[:, None], x), 1)
        x, rope = self.dropout(x), self.rope()
        for layer in self.layers:
            x = layer(x, rope, causal_attention)
        return self.output(self.norm(x))
