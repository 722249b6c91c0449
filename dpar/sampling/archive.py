"""Drawn images on disk: parts while a job runs, so that a killed one resumes, and then one npz as ADM reads it."""

import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dpar.data.parts import Parts
from dpar.files import atomic_write
from dpar.sampling.drawing import Drawn


def keep(parts: Parts, drawn: Drawn) -> None:
    """Saves a batch of a shard."""
    parts.add(range(drawn.start, drawn.stop), images=drawn.images, patches=drawn.patches)


def kept(parts: Parts) -> Iterator[Drawn]:
    """The saved batches, in order."""
    for span, arrays in parts:
        yield Drawn(span.start, arrays["images"], arrays["patches"])


def write_samples(
    path: Path,
    images: Iterable[UInt8[np.ndarray, "_ H W 3"]],
    shape: tuple[int, int, int, int],
    arrays: Mapping[str, np.ndarray],
    conditions: Mapping[str, Any],
) -> None:
    """Writes an npz whole or not at all: `arr_0` (bytes, in blocks as they come), `arrays`, and `conditions` as JSON.

    Args:
        images: blocks that together have `shape`.
    """
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        # ZipInfo: its fixed date makes equal content equal bytes
        with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(member, header)
            written = 0
            for block in images:
                member.write(np.ascontiguousarray(block).data)
                written += len(block)
        assert written == shape[0], f"{written} images, expected {shape[0]}"
        for name, array in (*arrays.items(), ("conditions", np.array(json.dumps(conditions, sort_keys=True)))):
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
