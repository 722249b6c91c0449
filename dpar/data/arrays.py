"""Arrays of numbers in untrusted npy and npz files: no pickles, no truncated files, none that fill the memory.

Every header is read before its array. An array may take `LARGEST` bytes, or `EXPANSION` times the size of its file.
"""

import math
import os
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from dpar.errors import InputError

LARGEST = 2**30  # bytes of any array
EXPANSION = 100  # bytes of an array larger than that for each byte of its file
_MAGIC = {b"PAR1": "a Parquet file", b"PK\x03\x04": "an archive", b"<html": "a web page"}


@contextmanager
def foreign(path: str | Path, what: str, cure: str) -> Iterator[None]:
    """A block that reads the untrusted file `path`; every failure becomes a one-line error.

    Args:
        what: expected kind of file, such as `npz file with images`.
        cure: the next step.

    Raises:
        InputError: the file is missing, or whatever the block raises.
    """
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; {cure}") from None
    except Exception as error:  # numpy and zipfile raise a dozen types at foreign bytes, none of which is of the caller
        said = " ".join((str(error) or type(error).__name__).split())
        size = f" of {os.path.getsize(path)} bytes" if os.path.isfile(path) else ""
        raise InputError(f"{path}{size} is no whole {what} ({said}); {cure}") from None


def read_npy(path: str | Path, *, mapped: bool = False) -> np.ndarray:
    """The array in a .npy file; to be called in a `foreign` block.

    Args:
        mapped: memory-map it.
    """
    with open(path, "rb") as file:
        start = file.read(6)
        if start != b"\x93NUMPY":
            kind = _MAGIC.get(start[:4]) or _MAGIC.get(start[:5])
            raise ValueError(f"it is {kind}" if kind else f"it begins with {start!r}")
        file.seek(0)
        shape, _, dtype = read_header(file)
        needed, there = math.prod(shape) * dtype.itemsize, os.path.getsize(path) - file.tell()
    if needed > there:
        raise ValueError(f"shape {shape} of {dtype} takes {needed} bytes, of which {there} are there")
    return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)


def read_npz(path: str | Path, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays in an npz by their names; to be called in a `foreign` block.

    Args:
        names: arrays to read, if present; null = all.
    """
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if names is None or name.removesuffix(".npy") in names:
                with archive.open(name) as stream:
                    shape, _, dtype = read_header(stream)
                check_size(path, name, shape, dtype)
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files if names is None or name in names}


def check_size(path: str | Path, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Refuses an array of more bytes than the file can hold."""
    needed, size = math.prod(shape) * dtype.itemsize, os.path.getsize(path)
    if needed > max(LARGEST, EXPANSION * size):
        raise ValueError(
            f"{name} of shape {shape} and type {dtype} would take {needed / 2**30:,.1f} GiB, from a file of {size} "
            f"bytes: the limit is {LARGEST // 2**30} GiB, or {EXPANSION} times the file"
        )


def read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns come first, and type of the array whose bytes follow in the stream.

    Raises:
        ValueError: there is no array, or one of Python objects (pickles run code).
    """
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never loaded: save arrays of numbers")
    if any(side < 0 for side in shape):
        raise ValueError(f"its shape is {shape}")
    return shape, by_columns, dtype
