"""Positions of tokens and patches as rotations of queries and keys (Section 6.3 of the paper, Eqs. 8-9).

A table of rotations has the shape [..., head_dim / 2, 2]: the cosine and the sine of one angle for each adjacent pair
of channels. Tables are made where they are used, from integers: they are no part of a model's state, so that no change
of a model's precision can round them.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Position = Literal["dynamic", "dynamic_no_redundancy", "2d"]
BASE = 10000.0


def _angles(coordinate: Int[Tensor, "..."], pairs: int) -> Float[Tensor, "... pairs"]:
    """`coordinate` times the frequencies BASE^(-(i - 1) / pairs), i = 1 .. pairs, in float64.

    With d/4, d/8 or d/16 pairs of a head of width d this is BASE^(-4(i-1)/d), BASE^(-8(i-1)/d), BASE^(-16(i-1)/d).
    """
    exponents = torch.arange(pairs, dtype=torch.float64, device=coordinate.device) / pairs
    return coordinate[..., None] * BASE**-exponents


def _table(angles: Float[Tensor, "... pairs"], dtype: torch.dtype) -> Float[Tensor, "... pairs 2"]:
    return torch.stack((angles.cos(), angles.sin()), -1).to(dtype)


def token_rope(
    row: Int[Tensor, "..."], column: Int[Tensor, "..."], head_dim: int, *, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "... half 2"]:
    """Rotations of a token by its cell: the first half of the pairs by the row, the second by the column (Eq. 8)."""
    return _table(torch.cat((_angles(row, head_dim // 4), _angles(column, head_dim // 4)), -1), dtype)


def grid_rope(
    rows: int,
    columns: int,
    head_dim: int,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "T half 2"]:
    """Rotations of all T = rows x columns tokens of an image in raster order (Eq. 8)."""
    cells = torch.arange(rows * columns, device=device)
    return token_rope(cells // columns, cells % columns, head_dim, dtype=dtype)


def patch_rope(
    row: Int[Tensor, "..."],
    start: Int[Tensor, "..."],
    end: Int[Tensor, "..."],
    head_dim: int,
    scheme: Position = "dynamic",
    *,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "... half 2"]:
    """Rotations of a patch by its row and its span of columns (Eq. 9, Table 9).

    Deviation: the paper defines a span only where rows start patches. Without that rule a patch may run over the end
    of a row; then `row` and `start` are of its first token and `end` is the column of its last, maybe the smaller one.

    Args:
        row: of the patch's first token.
        start: column of the first token.
        end: column of the last token, inclusive.
        head_dim: a multiple of 16.
        scheme: `dynamic` (Eq. 9), `dynamic_no_redundancy` (start and end once, with twice as many frequencies), or
            `2d` (Eq. 8 at the first token).
    """
    if scheme == "2d":
        return token_rope(row, start, head_dim, dtype=dtype)
    if scheme == "dynamic":
        first, last = _angles(start, head_dim // 16), _angles(end, head_dim // 16)
        columns = (first, last, last, first)
    else:
        columns = (_angles(start, head_dim // 8), _angles(end, head_dim // 8))
    return _table(torch.cat((_angles(row, head_dim // 4), *columns), -1), dtype)


def zero_rope(
    count: int, head_dim: int, *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "count half 2"]:
    """Rotations of `count` class tokens or start vectors, which have no position: cosine and sine 0.

    Their queries and keys become zero vectors; LlamaGen's checkpoints were trained so.
    """
    return torch.zeros(count, head_dim // 2, 2, device=device, dtype=dtype)


def rotate(x: Float[Tensor, "... H head_dim"], rope: Float[Tensor, "... half 2"]) -> Float[Tensor, "... H head_dim"]:
    """`x` with each adjacent pair of channels turned by its angle, alike in all heads; computed in fp32 or wider."""
    pairs = x.to(torch.promote_types(x.dtype, rope.dtype)).unflatten(-1, (-1, 2))
    rope = rope[..., None, :, :]
    if torch.compiler.is_compiling():  # a compiler fuses the real products and cannot generate code for the complex one
        (a, b), (cosine, sine) = pairs.unbind(-1), rope.unbind(-1)
        turned = torch.stack((a * cosine - b * sine, b * cosine + a * sine), -1)
    else:  # one complex product: ten times as fast on a CPU
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rope))
    return turned.flatten(-2).type_as(x)
