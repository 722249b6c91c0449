"""Matrix products and attention in which a row's rounding does not depend on how many other rows there are.

A BLAS library adds up the last rows of a matrix in another order than the others, so a row's last bit changes when rows
are added behind it. Under `RowByRow` every row is computed alike: whatever changes then, changes because of its inputs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


def linear(x: Tensor, weight: Tensor) -> Tensor:
    return (x[..., None, :] * weight).sum(-1)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, H, N, head_dim), each query with the keys up to its own and no more."""
    rows = []
    for i in range(q.shape[-2]):
        scores = (q[..., i : i + 1, :] * k[..., : i + 1, :]).sum(-1) * q.shape[-1] ** -0.5
        rows.append((scores.softmax(-1)[..., None] * v[..., : i + 1, :]).sum(-2))
    return torch.stack(rows, -2)


class RowByRow(TorchFunctionMode):
    """Inside it, `F.linear` and causal attention compute each row alike."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            assert len(args) < 3 or args[2] is None
            return linear(*args[:2])
        if func is F.scaled_dot_product_attention:
            assert kwargs == {"is_causal": True}
            return causal(*args)
        return func(*args, **kwargs)
