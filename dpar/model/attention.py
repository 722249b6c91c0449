"""Causal attention: dense, or packed end to end over images of different lengths, by an available back end.

Deviation: the paper packs with xformers; here that is one back end of several with one result, not the first choice.
"""

import inspect
import logging
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dpar.errors import InputError
from dpar.model.layers import Attend
from dpar.patches.packing import PackedLengths

Backend = Literal["sdpa", "varlen", "xformers", "flex"]

logger = logging.getLogger(__name__)


def causal_attention(
    q: Float[Tensor, "B N H Dh"], k: Float[Tensor, "B N H Dh"], v: Float[Tensor, "B N H Dh"]
) -> Float[Tensor, "B N H Dh"]:
    """Attention of each position to itself and all earlier ones of the same image."""
    if widens(q):
        with torch.autocast("cpu", enabled=False):
            return causal_attention(q.float(), k.float(), v.float()).to(q.dtype)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def widens(q: Float[Tensor, "... Dh"]) -> bool:
    """Whether attention over such queries is computed in float32: half precision on a CPU, where gradients are made.

    The CPU's kernel takes up to three times as long for gradients in half precision, which it widens itself in pieces.
    """
    return q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16) and q.requires_grad


def _sdpa(packed: PackedLengths) -> Attend:
    """One dense call per image: exact everywhere, and on a CPU the fastest."""
    lengths = list(packed.lengths)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if widens(q):  # once, not for each image
            with torch.autocast("cpu", enabled=False):
                return attend(q.float(), k.float(), v.float()).to(q.dtype)
        # split, not slices: the gradient of a slice is as large as the whole batch, once per image
        images = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
        return torch.cat([causal_attention(a[None], b[None], c[None])[0] for a, b, c in images])

    return attend


def _varlen(packed: PackedLengths) -> Attend:
    """PyTorch's own variable-length attention: half precision, GPU."""
    from torch.nn.attention.varlen import varlen_attn

    # torch 2.10 says `is_causal`; later versions take the window of a query
    windowed = "window_size" in inspect.signature(varlen_attn).parameters
    causal: dict[str, Any] = {"window_size": (-1, 0)} if windowed else {"is_causal": True}
    ends, longest = packed.cu_seqlens, packed.longest

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return cast(Tensor, varlen_attn(q, k, v, ends, ends, longest, longest, **causal))

    return attend


def _xformers(packed: PackedLengths) -> Attend:
    """The paper's implementation; the packed one that supports fp32 on a GPU."""
    from xformers.ops import memory_efficient_attention  # pyright: ignore[reportMissingImports]  # an extra
    from xformers.ops.fmha.attn_bias import BlockDiagonalCausalMask  # pyright: ignore[reportMissingImports]

    mask = BlockDiagonalCausalMask.from_seqlens(list(packed.lengths), device=packed.cu_seqlens.device)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return memory_efficient_attention(q[None], k[None], v[None], attn_bias=mask)[0]

    return attend


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def _flex(packed: PackedLengths) -> Attend:
    """FlexAttention with a mask of whole blocks; compiled at the first call. On a CPU it has no gradient."""
    from torch.nn.attention.flex_attention import create_block_mask

    image, total, flex_attention = packed.sequence_ids, packed.total, _compiled_flex()
    mask = create_block_mask(
        lambda batch, head, query, key: (image[query] == image[key]) & (query >= key),
        None,
        None,
        total,
        total,
        device=str(image.device),
    )

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        return flex_attention(q, k, v, block_mask=mask)[0].transpose(0, 1)

    return attend


BACKENDS: dict[Backend, Callable[[PackedLengths], Attend]] = {
    "sdpa": _sdpa,
    "varlen": _varlen,
    "xformers": _xformers,
    "flex": _flex,
}


@cache
def fastest_backend(device: torch.device, dtype: torch.dtype) -> Backend:
    """The fastest back end that works for such tensors here, by trial; the choice is logged once.

    `flex` is never chosen by itself: it compiles at the first call and is not faster.
    """
    fastest: Backend = "sdpa"
    faster: tuple[Backend, ...] = ("varlen", "xformers") if device.type == "cuda" else ()
    for backend in faster:
        reason = why_not(backend, device, dtype)
        if reason is None:
            fastest = backend
            break
        logger.info("packed attention cannot be %s: %s", backend, reason)
    logger.info("packed attention: %s (%s, %s)", fastest, device, dtype)
    return fastest


def why_not(backend: Backend, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why packed attention by `backend` cannot train here; None if it can, by trial."""
    with torch.inference_mode(False), torch.enable_grad():
        packed = PackedLengths.from_lengths([3, 5], device)
        # not random: a training's numbers must not depend on the trial
        q, k, v = (torch.ones(8, 2, 64, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
        try:
            packed_attention(packed, backend, dtype=dtype)(q, k, v).sum().backward()
        except (InputError, RuntimeError) as error:  # NotImplementedError is a RuntimeError
            return str(error).strip().split(". ")[0].splitlines()[0]
    return None


def attention_dtype(weight: Tensor) -> torch.dtype:
    """The precision in which attention over products with `weight` runs: autocast's where that is on."""
    device = weight.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype


def packed_attention(
    packed: PackedLengths, backend: Backend | Literal["auto"] = "auto", *, dtype: torch.dtype = torch.float32
) -> Attend:
    """Causal attention within each sequence, over tensors (N, H, head_dim) with the sequences end to end.

    Args:
        packed: the lengths; made once per batch and shared by all layers.
        backend: `auto` for `fastest_backend`, or one by name.
        dtype: of the queries to come; `auto` depends on it.

    Raises:
        InputError: the back end's package cannot be imported here.
    """
    if backend == "auto":
        backend = fastest_backend(packed.cu_seqlens.device, dtype)
    try:
        return BACKENDS[backend](packed)
    except ImportError as error:
        raise InputError(
            f"packed attention {backend!r} cannot be imported here ({error}); "
            "install what it needs (`pip install 'dpar[gpu]'` for xformers) or set `attention: auto`"
        ) from error
