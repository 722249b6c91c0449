"""Contents of a folder to measure: images or files of one kind, or a refusal that counts what is there."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from dpar.data.decoding import SUFFIXES
from dpar.data.sources.folder import folder_identity, is_folder
from dpar.data.sources.source import LeftAlone, described, enumerated
from dpar.errors import InputError, shown
from dpar.files import is_hidden

IMAGE = "image"
ARCHIVES = {".npz": ".npz", ".parquet": ".parquet", ".tar": ".tar"}  # suffix -> how it is counted
_NAMED = 3  # files of a kind that a message names


@dataclass
class Contents:
    """Counts and names of a folder's contents, without what is hidden (`is_hidden`).

    Args:
        here: names in the folder itself, by kind: `image`, `.npz`, `.parquet`, `.tar`.
        below: how many of each kind its sub-folders hold.
        folders: names of those that hold any.
        left_alone: files of no kind.
    """

    here: dict[str, list[str]] = field(default_factory=dict)
    below: Counter[str] = field(default_factory=Counter)
    folders: list[str] = field(default_factory=list)
    left_alone: LeftAlone = field(default_factory=LeftAlone)

    @classmethod
    def of(cls, path: Path) -> "Contents":
        """The contents of a folder; a folder that links reach again is counted once.

        Raises:
            InputError: a folder cannot be read.
        """
        found, reached = cls(), {folder_identity(path)}
        names, folders = _listed(path)
        shards = {Path(name).stem for name in names if name.endswith(".npz")}
        for name in names:
            if name.endswith(".png") and Path(name).stem in shards:
                continue  # the contact sheet of these samples
            if kind := kind_of(name):
                found.here.setdefault(kind, []).append(name)
            else:
                found.left_alone.add(os.path.splitext(name)[1].lower() or "without a suffix")
        for folder in folders:
            counts = _counted(path / folder, reached)
            found.below += counts
            found.folders += [folder] * (counts.total() > 0)
        return found

    def only_kind(self, path: Path) -> str:
        """The one kind that the folder holds; `folder` for images in sub-folders.

        Raises:
            InputError: there is none, or several, of which a part alone would be measured.
        """
        left = described(self.left_alone.summary(), "; left alone: ")
        parts = [f"{_count(len(names), kind)} ({enumerated(names, _NAMED)})" for kind, names in self.here.items()]
        if self.folders:
            inside = " and ".join(_count(count, kind) for kind, count in sorted(self.below.items(), reverse=True))
            names = enumerated(self.folders, _NAMED)
            parts.append(f"{_count(len(self.folders), 'sub-folder')} ({names}) with {inside}")
        if not parts:
            raise InputError(f"the folder {path} holds no images, npz, Parquet files or tars{left}; check the path")
        if len(parts) > 1 or set(self.below) - {IMAGE}:
            raise InputError(
                f"the folder {path} holds {' and '.join(parts)}, expected one kind, since a part alone would be "
                f"measured{left}; name one of them, or move them apart"
            )
        return next(iter(self.here), "folder")


def kind_of(name: str) -> str | None:
    """Kind of a file by its suffix; None if it cannot be measured."""
    return IMAGE if name.lower().endswith(SUFFIXES) else ARCHIVES.get(os.path.splitext(name)[1])


def _listed(folder: Path) -> tuple[list[str], list[str]]:
    """Names of what lies in a folder, and of the folders in it, without what is hidden."""
    names, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not is_hidden(entry.name):
                    (folders if is_folder(entry) else names).append(entry.name)
    except OSError as error:
        raise InputError(f"the folder {shown(str(folder))} cannot be read ({error.strerror})") from None
    return sorted(names), sorted(folders)


def _counted(folder: Path, reached: set[tuple[int, int]]) -> Counter[str]:
    """Number of files of each kind below a folder, at any depth."""
    found: Counter[str] = Counter()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        if (identity := folder_identity(here)) in reached:
            continue
        reached.add(identity)
        names, folders = _listed(here)
        found.update(kind for name in names if (kind := kind_of(name)))
        waiting += [here / name for name in folders]
    return found


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1 and what[0] != '.')}"
