"""The device a process computes on."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.compiler import config as compiler_config

from dpar.errors import InputError
from dpar.launched import launched

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
def full_float32() -> Iterator[None]:
    """float32 products keep their 24 bits in this block: no TF32 in matrix products, nor in convolutions."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
