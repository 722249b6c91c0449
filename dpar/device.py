"""The device a process computes on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

PEAK_BF16 = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12, "L40S": 362e12, "RTX 4090": 165e12}


def default_device() -> torch.device:
    """This rank's GPU where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 operations a second that the maker of this GPU promises; None where that is not known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for part, peak in PEAK_BF16.items() if part in name), None)


def sent(tensor: Tensor, device: torch.device | str | None) -> Tensor:
    """`tensor` on `device`, or under way to that GPU from memory that stays where it is, so that nobody waits.

    A copy from ordinary memory would hold the process until the GPU has done all that it was asked before.
    """
    if device is not None and torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


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
