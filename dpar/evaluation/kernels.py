"""The kernels of a function and what each must move and multiply, counted while it runs on tensors without numbers.

Every operation that is not a view is a kernel, as PyTorch launches them one by one on a GPU; norms, attention and
products are one each. A kernel reads its inputs and writes its outputs once, in the memory of the card: caches are left
out, and so is what a kernel moves beyond that.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

FUSED = {"rms_norm", "scaled_dot_product_attention"}
"""Functions that are one kernel on a GPU and several operations here; their output is like their first input."""

FREE = {
    "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "_unsafe_view", "_reshape_alias",
    "promote_types", "scalar_tensor", "lift_fresh",
}  # fmt: skip
ATTENTION = {"scaled_dot_product_attention", "_varlen_attn", "_flash_attention_forward"}
PICKING = {"index_select", "embedding", "gather", "index"}  # read as much as they give
# write as much as they are given
PLACING = {"index_copy_", "index_copy", "index_put_", "index_put", "_index_put_impl_"}
SEVERAL = {"nonzero_static": 3, "sort": 4, "topk": 3, "cumsum": 2, "_varlen_attn": 2, "_flash_attention_forward": 2}
"""Launches of operations that are more than one; of the last, the second fills two numbers that nothing uses."""


class Kernel(NamedTuple):
    """One kernel: bytes that it moves, floating-point operations of a product of matrices, and their precision."""

    name: str
    bytes: float  # keys and values aside
    entry_bytes: float  # of the keys and values of one entry of a cache, of attention
    flops: float
    dtype: torch.dtype
    launches: int = 1


class _Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[-1]
        if not (func.is_view or name in FREE or _unmoved(name, args, result)):
            formula = flop_registry.get(func.overloadpacket) if name not in ATTENTION else None
            flops = formula(*args, **(kwargs or {}), out_val=result) if formula else 0.0
            self.add(name, args, kwargs, result, flops)
        return result

    def add(self, name: str, args: Any, kwargs: Any, result: Any, flops: float = 0.0) -> None:
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        dtype = next((x.dtype for x in given if x.is_floating_point()), torch.float32)
        size, entry = _bytes(name, given, made), 0.0
        if name in ATTENTION:
            entry = 2.0 * given[0].shape[1] * given[0].shape[-1] * given[0].element_size()  # heads, channels of each
        self.kernels.append(Kernel(name, size, entry, float(flops), dtype, SEVERAL.get(name, 1)))


class _Fuse(TorchFunctionMode):
    def __init__(self, count: _Count):
        super().__init__()
        self.count = count

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name not in FUSED:
            return func(*args, **(kwargs or {}))
        result = torch.empty_like(args[0])  # of the same shape, as all of them give
        self.count.add(name, args, kwargs, result)
        return result


def _bytes(name: str, given: list[Tensor], made: list[Tensor]) -> float:
    if name in ATTENTION:  # queries and outputs
        return 2 * _size(given[0])
    if name in PICKING:
        return 2 * sum(map(_size, made)) + sum(_size(x) for x in given[1:])
    if name in PLACING:
        return _size(given[-1]) + sum(_size(x) for x in given[1:])
    return sum(map(_size, given)) + sum(map(_size, made))


def _unmoved(name: str, args: Any, result: Any) -> bool:
    """Whether a change of type changes nothing."""
    return name == "_to_copy" and isinstance(result, Tensor) and result.dtype == args[0].dtype


def _size(x: Tensor) -> int:
    """Bytes of a tensor in memory; an axis along which it is repeated counts once."""
    return x.element_size() * math.prod(n for n, stride in zip(x.shape, x.stride(), strict=True) if stride)


def kernels_of(function: Callable[..., Any], *args: Any) -> list[Kernel]:
    """The kernels of `function(*args)` in turn, which works on the meta device."""
    count = _Count()
    with torch.no_grad(), count, _Fuse(count):
        function(*args)
    return count.kernels
