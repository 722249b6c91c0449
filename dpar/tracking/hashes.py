"""Files and folders with their digests, each read once and remembered as long as the file is the same."""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpar import files
from dpar.errors import InputError


@dataclass(frozen=True)
class FileRecord:
    """One file: where it lies below its artefact (empty for the artefact itself), its length and content."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Artefact:
    """A declared input or output: a file, or a folder and the files in it.

    `path` is relative to the results folder where the artefact lies inside it, and absolute elsewhere. The digest of a
    folder is that of the sorted lines `<sha256>  <path>` of its files, as `sha256sum` would print them.
    """

    path: str
    kind: str
    bytes: int
    sha256: str
    files: tuple[FileRecord, ...]

    def only(self, own: Callable[[FileRecord], bool]) -> "Artefact":
        """The same with those files of a folder alone that are its `own`; itself where that is none of them."""
        records = [file for file in self.files if own(file)] if self.kind == "folder" else []
        return _artefact(self.path, True, records) if 0 < len(records) < len(self.files) else self

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Artefact":
        """The artefact of which JSON has the fields."""
        records = tuple(FileRecord(**file) for file in value["files"])
        return cls(value["path"], value["kind"], value["bytes"], value["sha256"], records)


def portable_path(path: str | Path, results: Path) -> str:
    """`path` relative to the folder `results` if it lies in it, else absolute; always with forward slashes.

    It lies in it by its name, or else by where links lead: to the results folder from elsewhere, or from there.
    """
    absolute = Path(os.path.abspath(path))
    if absolute.is_relative_to(lexical := os.path.abspath(results)):
        return absolute.relative_to(lexical).as_posix()
    root = Path(results).resolve()
    for place in (absolute, Path(os.path.realpath(absolute))):
        if folder := next((folder for folder in (place, *place.parents) if folder.resolve() == root), None):
            return place.relative_to(folder).as_posix()
    return absolute.as_posix()


def content_files(path: Path) -> list[Path]:
    """The files that make up an artefact, sorted: itself, or all below the folder.

    Snakemake's time stamp of a folder and files that are still being written do not count.
    """
    if not path.is_dir():
        return [path]
    found = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    return sorted(f for f in found if f.name != ".snakemake_timestamp" and not f.name.endswith(".partial"))


class HashCache:
    """Digests below `folder`, one JSON file for each artefact, so that parallel jobs never write the same one.

    A digest is taken from the cache when the file is still the one that was read: same inode, size, and times of its
    last modification and last change (nanoseconds), the latter of which nobody can set. What a job has hashed as its
    output is thus not read again when another job has it as input.
    """

    def __init__(self, results: str | Path, *, keep: bool = True):
        self.results, self.keep = Path(results), keep
        self.folder = self.results / "tracking" / "hashes"

    def _entry(self, path: Path) -> Path:
        return self.folder / f"{files.digest(portable_path(path, self.results))}.json"

    def _known(self, path: Path) -> dict[str, list]:
        with suppress(InputError), files.fields_of(path):  # a cache that cannot be read is an empty one
            entry = files.read_json(self._entry(path))
            if entry["path"] == portable_path(path, self.results):
                return dict(entry["files"])
        return {}

    def artefact(self, path: str | Path) -> Artefact:
        """The artefact at `path` as it is now.

        Raises:
            InputError: there is nothing at `path`.
        """
        path = Path(path)
        if not path.exists():
            raise InputError(f"{path} does not exist; run the stage that makes it, or check the path")
        known = self._known(path)
        from_parent = {} if known or path.is_dir() else self._known(path.parent)
        fresh, records = False, []
        entries: dict[str, list] = {}
        for file in content_files(path):
            relative = "" if file == path else file.relative_to(path).as_posix()
            stamp = files.stamp_of(file)
            remembered = known.get(relative) or (from_parent.get(path.name) if relative == "" else None)
            if isinstance(remembered, list) and remembered[:-1] == stamp:  # older caches lack the last two of them
                sha256 = remembered[-1]
            else:
                sha256, fresh = files.sha256_file(file), True
            entries[relative] = [*stamp, sha256]
            records.append(FileRecord(relative, stamp[0], sha256))
        if fresh and self.keep:
            value = {"path": portable_path(path, self.results), "files": entries}
            with suppress(InputError):  # of somebody else's results, or no space: it is read again the next time
                files.write_json(self._entry(path), value)
        return _artefact(portable_path(path, self.results), path.is_dir(), records)


def read_artefact(path: str | Path, results: str | Path) -> Artefact:
    """The artefact at `path`, every byte of it read now."""
    path, records = Path(path), []
    for file in content_files(path):
        relative = "" if file == path else file.relative_to(path).as_posix()
        records.append(FileRecord(relative, file.stat().st_size, files.sha256_file(file)))
    return _artefact(portable_path(path, Path(results)), path.is_dir(), records)


def _artefact(path: str, folder: bool, records: list[FileRecord]) -> Artefact:
    total = sum(record.bytes for record in records)
    if not folder:
        return Artefact(path, "file", total, records[0].sha256, tuple(records))
    lines = "".join(f"{record.sha256}  {record.path}\n" for record in records)
    return Artefact(path, "folder", total, hashlib.sha256(lines.encode()).hexdigest(), tuple(records))
