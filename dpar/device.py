"""The device a process computes on."""

import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.compiler import config as compiler_config

from dpar.errors import InputError
from dpar.launched import launched

T = TypeVar("T")

PEAK_BF16 = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12, "L40S": 362e12, "RTX 4090": 165e12}


def default_device(turn: int = 0) -> torch.device:
    """This rank's GPU where there is one, else the CPU.

    Args:
        turn: number of this job among others of its kind, which take the GPUs in turn if all of them are visible.
    """
    if torch.cuda.is_available():
        place = launched()
        return torch.device("cuda", place.local if place else turn % torch.cuda.device_count())
    return torch.device("cpu")


def pad_batch(batch: Shaped[Tensor, "B *rest"], size: int) -> Shaped[Tensor, "{size} *rest"]:
    """`batch` with copies of its first row up to `size` rows.

    Another batch size rounds a row's sums differently; other neighbours or another position in the batch do not. So a
    row's results do not depend on how the rows were divided into shards.
    """
    return torch.cat([batch, batch[:1].expand(size - len(batch), *batch.shape[1:])])


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 operations per second that the maker of this GPU promises; None where that is not known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for part, peak in PEAK_BF16.items() if part in name), None)


def to_device(tensor: Shaped[Tensor, "*any"], device: torch.device | str | None) -> Shaped[Tensor, "*any"]:
    """`tensor` on `device`; to a GPU by a non-blocking copy from pinned memory.

    A copy from pageable memory would block until the GPU has finished all earlier work.
    """
    if device is not None and torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@cache
def try_compiler(device: torch.device) -> None:
    """Compiles something small for `device`, once in a process.

    Raises:
        InputError: nothing can be compiled here.
    """
    try:
        # PyTorch warns that its caches are off, which is meant here
        with warnings.catch_warnings(action="ignore"), compiler_config.patch(force_disable_caches=True):  # pyright: ignore[reportAttributeAccessIssue]
            torch.compile(torch.cos)(torch.ones(2, device=device))
    except RuntimeError as error:
        reason = next(line for line in str(error).splitlines() if line.strip())
        raise InputError(
            f"compiled code was asked for, but PyTorch cannot compile here ({reason.strip():.200}); "
            "install a C++ compiler such as g++, or set `compile: false` (no `--compile`), which is only slower"
        ) from None


@contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """On CUDA, sums in this block are made in an order of their own, and not by atomic additions; or nothing changes.

    PyTorch raises a RuntimeError that names the operation where it has no such way. cuBLAS wants to be told before its
    first product.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    memory: Any = torch.utils.deterministic
    before, filling = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # a check of programs, which is slow
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        memory.fill_uninitialized_memory = filling


@contextmanager
def any_order() -> Iterator[None]:
    """A part of such a block that need not repeat itself, and may use operations that have no order of their own."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def full_float32() -> Iterator[None]:
    """float32 products keep their 24 bits in this block: no TF32 in matrix products, nor in convolutions.

    The program may have chosen by either of PyTorch's settings, the older functions or `fp32_precision`; both are put
    back. They are the process's: see `tf32_products`.
    """
    with _float32_products("highest"):
        yield


@contextmanager
def tf32_products(device: torch.device) -> Iterator[None]:
    """Matrix products of float32 run on a GPU's tensor cores in this block, with 11 bits of each factor (TF32).

    Convolutions keep their bits, and so do products on a CPU. The setting is the process's: one thread at a time is in
    this block or in `without_tf32`, so that another one's products do not take part.
    """
    if device.type != "cuda":
        yield
        return
    with _TURN, _float32_products("high"):
        yield


@contextmanager
def without_tf32() -> Iterator[None]:
    """`full_float32` next to a thread that calls `tf32_products`, which waits until this block has been left."""
    with _TURN, full_float32():
        yield


_TURN = threading.Lock()


@contextmanager
def _float32_products(precision: Literal["highest", "high"]) -> Iterator[None]:
    """That precision in matrix products on a GPU, and full precision in all others."""
    backends: Any = torch.backends
    gpu = backends.cuda.matmul
    others = (
        backends.cudnn.conv,
        backends.cudnn.rnn,
        backends.mkldnn.matmul,
        backends.mkldnn.conv,
        backends.mkldnn.rnn,
    )
    before = [part.fp32_precision for part in (gpu, *others)]
    older = _older_setting(torch.get_float32_matmul_precision), _older_setting(lambda: backends.cudnn.allow_tf32)
    torch.set_float32_matmul_precision(precision)
    backends.cudnn.allow_tf32 = False
    for part in others:
        part.fp32_precision = "ieee"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(older[0] or "highest")
        backends.cudnn.allow_tf32 = bool(older[1])
        for part, value in zip((gpu, *others), before, strict=True):
            part.fp32_precision = value


def _older_setting(read: Callable[[], T]) -> T | None:
    """Its value; None where the program has used the newer one, after which PyTorch refuses to say."""
    try:
        return read()
    except RuntimeError:
        return None
