"""Work on many images in pieces that fit the memory."""

import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from dpar.errors import InputError

T = TypeVar("T")
# Words of torch, or of a library under it, in a plain RuntimeError.
SAID = (
    "not enough memory", "can't allocate memory", "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED",
)  # fmt: skip


def out_of_memory(error: BaseException) -> bool:
    """Whether the error says that device or host memory is exhausted."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in SAID)


def in_pieces(work: Callable[[int, int], T], start: int, stop: int, size: int) -> Iterator[T]:
    """`work(first, last)` of consecutive images from `start` to `stop`, `size` at a time.

    A piece that does not fit the memory is halved, and so are those after it: the result for an image must not
    depend on the others in its piece, except by rounding.

    Raises:
        InputError: not even one image fits.
    """
    while start < stop:
        end = min(start + size, stop)
        try:
            found = work(start, end)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if end - start == 1:
                raise InputError(
                    "not even one image fits the memory of the device; use a larger one, or sampling.precision bfloat16"
                ) from None
            size = -(-(end - start) // 2)
            print(f"the memory is too small for {end - start} images at a time; going on with {size}", file=sys.stderr)
            continue
        yield found
        start = end
