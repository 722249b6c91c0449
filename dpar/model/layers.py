"""The block that LlamaGen and every part of DPAR are made of: pre-norm, rotary attention, SwiGLU, no biases."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from dpar.model.rope import rotate

INIT_STD = 0.02
NORM_EPS = 1e-5

# queries, keys and values [..., N, H, head_dim] -> mixed values of the same shape. Dense images are
# (B, N, H, head_dim), packed ones (N, H, head_dim), a sampling step (R, H, head_dim) with a cache in the callable.
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The precision of norms, rotations, softmax and logits for a network of `dtype`: fp32 or wider."""
    return torch.promote_types(dtype, torch.float32)


def hidden_width(width: int) -> int:
    """Channels inside the feed-forward network: 2/3 of 4 x width, rounded up to a multiple of 256."""
    return -(-int(2 * 4 * width / 3) // 256) * 256


def draw_weights(weight: Tensor) -> None:
    """Draws from N(0, 0.02), except for a weight without numbers, which would take its time on the meta device."""
    if not weight.is_meta:
        nn.init.normal_(weight, std=INIT_STD)


class Linear(nn.Linear):
    """A linear map without bias, drawn from N(0, 0.02)."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        draw_weights(self.weight)


class Head(Linear):
    """The linear map to logits, zero at first: the first loss is ln V exactly. Logits are fp32 or wider."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        logits = super().forward(x)
        return logits.to(at_least_float32(logits.dtype))


class Embedding(nn.Embedding):
    """A table of vectors, drawn from N(0, 0.02)."""

    def reset_parameters(self) -> None:
        draw_weights(self.weight)


class ClassEmbedding(nn.Module):
    """A vector for each class, and in the last row one for "no class"."""

    def __init__(self, num_classes: int, width: int):
        super().__init__()
        self.embedding_table = Embedding(num_classes + 1, width)

    def forward(self, labels: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch D"]:
        return self.embedding_table(labels)


class RMSNorm(nn.Module):
    """Divides by the root mean square and scales, in fp32 or wider."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        dtype = at_least_float32(x.dtype)
        if x.device.type == "cpu" and not torch.is_grad_enabled() and x.dtype == dtype:
            # PyTorch has no kernel for it there; this is half as many operations, which counts where rows are few
            square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
            return (x * square.mul_(1 / x.shape[-1]).add_(NORM_EPS).rsqrt_()).mul_(self.weight)
        if not torch.is_grad_enabled() and x.dtype == self.weight.dtype:
            # the same bits: half precision is widened inside of the kernel
            return F.rms_norm(x, self.weight.shape, self.weight, NORM_EPS)
        return F.rms_norm(x.to(dtype), self.weight.shape, self.weight.to(dtype), NORM_EPS).type_as(x)


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, width: int, dropout: float = 0.0):
        super().__init__()
        hidden = hidden_width(width)
        self.w1 = Linear(width, hidden)
        self.w3 = Linear(width, hidden)
        self.w2 = Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        return self.dropout(self.w2(F.silu(self.w1(x)) * self.w3(x)))


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions; `attend` decides the mask."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads = heads
        self.wqkv = Linear(width, 3 * width)
        self.wo = Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "*batch N D"], rope: Float[Tensor, "... half 2"], attend: Attend
    ) -> Float[Tensor, "*batch N D"]:
        qk, v = self.wqkv(x).unflatten(-1, (3, self.heads, -1)).split_with_sizes((2, 1), -3)
        q, k = rotate(qk, rope[..., None, :, :]).unbind(-3)
        return self.dropout(self.wo(attend(q, k, v.squeeze(-3)).flatten(-2)))


class Block(nn.Module):
    """One transformer layer: attention, then the feed-forward network, each on the normed input and added to it."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.attention_norm = RMSNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.ffn_norm = RMSNorm(width)
        self.feed_forward = FeedForward(width, dropout)

    def forward(
        self, x: Float[Tensor, "*batch N D"], rope: Float[Tensor, "... half 2"], attend: Attend
    ) -> Float[Tensor, "*batch N D"]:
        x = x + self.attention(self.attention_norm(x), rope, attend)
        return x + self.feed_forward(self.ffn_norm(x))
