"""Drawn images on disk: parts while a job runs, so that a killed one goes on, and then one npz as ADM reads it."""

import json
import re
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dpar.files import replacing
from dpar.sampling.drawing import Drawn


class Parts:
    """The finished part of a shard that is being drawn, in a hidden folder next to its output."""

    def __init__(self, output: Path, identity: str):
        """Args:
        output: the file that the parts will become.
        identity: of all that decides the images; parts of another identity are thrown away.
        """
        self.folder = output.with_name(f".{output.stem}.{identity}.parts")
        for other in output.parent.glob(f".{output.stem}.*.parts"):
            if other != self.folder:
                shutil.rmtree(other)
        kept = set(self._paths())
        for behind_a_gap in set(self.folder.glob("*.npz")) - kept:
            behind_a_gap.unlink()

    def add(self, part: Drawn) -> None:
        """Keeps the next part."""
        path = self.folder / f"{part.start:08d}-{part.stop:08d}.npz"
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, images=part.images, patches=part.patches)

    def _paths(self) -> list[Path]:
        """The parts from the first image on; one behind a part that could not be written does not count."""
        paths: list[Path] = []
        stop = 0
        for path in sorted(path for path in self.folder.glob("*.npz") if re.fullmatch(r"\d+-\d+", path.stem)):
            first, last = map(int, path.stem.split("-"))
            if first != stop:
                break
            paths.append(path)
            stop = last
        return paths

    @property
    def done(self) -> int:
        """Images that are finished: the first so many of the shard."""
        return max((int(path.stem.split("-")[1]) for path in self._paths()), default=0)

    def __iter__(self) -> Iterator[Drawn]:
        for path in self._paths():
            with np.load(path) as stored:
                yield Drawn(int(path.stem.split("-")[0]), stored["images"], stored["patches"])

    def remove(self) -> None:
        """Throws all parts away."""
        shutil.rmtree(self.folder, ignore_errors=True)


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
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
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
