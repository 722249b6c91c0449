"""The finished parts of a pass over many images, kept on disk so that a killed one resumes where it stopped."""

import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dpar.errors import InputError
from dpar.files import atomic_write


class Parts:
    """Arrays of consecutive images, in a hidden folder next to the file that they will become."""

    def __init__(self, output: Path, identity: str):
        """Args:
        identity: of everything that decides the arrays; parts of another identity are deleted.
        """
        self.folder = output.with_name(f".{output.stem}.{identity}.parts")
        for other in output.parent.glob(f".{output.stem}.*.parts"):
            if other != self.folder:
                shutil.rmtree(other, ignore_errors=True)  # another process may be at it too

    @property
    def spans(self) -> list[range]:
        """The numbers of the images of each part that is there, in order."""
        found = (re.fullmatch(r"(\d+)-(\d+)\.npz", path.name) for path in self.folder.glob("*.npz"))
        return sorted((range(int(name[1]), int(name[2])) for name in found if name), key=lambda span: span.start)

    def resume(self) -> int:
        """The number of finished images from the first on; parts after a gap are deleted."""
        stop = 0
        for span in self.spans:
            if span.start == stop:
                stop = span.stop
            else:
                self._path(span).unlink()
        return stop

    def add(self, span: range, **arrays: np.ndarray) -> None:
        """Saves a part: arrays whose rows are the images of these numbers."""
        with atomic_write(self._path(span)) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays, of=np.array(self._name(span)))  # pyright: ignore[reportArgumentType]  # none is called `allow_pickle`

    def load(self, span: range) -> dict[str, np.ndarray]:
        """The arrays of a part that is there.

        Raises:
            InputError: it is damaged, or that of another pass or other images.
        """
        advice = f"remove {self._path(span)} and run the same command again, which makes that part again"
        try:
            with np.load(self._path(span), allow_pickle=False) as stored:
                arrays = dict(stored)
        except (ValueError, LookupError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
            raise InputError(f"a part of what was being made is damaged ({error}); {advice}") from None
        if (of := str(arrays.pop("of", self._name(span)))) != self._name(span):  # older ones lack it
            raise InputError(f"a part of what was being made is that of {of}; {advice}")
        return arrays

    def __iter__(self) -> Iterator[tuple[range, dict[str, np.ndarray]]]:
        for span in self.spans:
            yield span, self.load(span)

    def remove(self) -> None:
        """Deletes all parts."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _name(self, span: range) -> str:
        return f"{self.folder.name}/{self._path(span).name}"

    def _path(self, span: range) -> Path:
        return self.folder / f"{span.start:08d}-{span.stop:08d}.npz"
