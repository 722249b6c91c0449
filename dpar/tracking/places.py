"""Paths of the records of jobs in a results folder."""

import os
import re
from pathlib import Path

from dpar.errors import InputError

EVENTS, MANIFEST, LOCK, CONFIG = "events.jsonl", "manifest.json", "lock", "experiment.json"


def spool_root(results: str | Path) -> Path:
    """The folder of all spools of a results folder."""
    return Path(results) / "tracking" / "spool"


def slug_of(name: str) -> str:
    """The name of a job as its spool begins; the job's identity follows."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80]


def names_of(path: Path) -> list[tuple[Path, str]]:
    """The results folders that `path` lies in and its name in each: as it is called, and where links lead to."""
    found: dict[tuple[Path, str], None] = {}
    for place in map(Path, (os.path.abspath(path), os.path.realpath(path))):  # which bears loops of links
        if folder := next((folder for folder in place.parents if spool_root(folder).is_dir()), None):
            found[folder.resolve(), place.relative_to(folder).as_posix()] = None
    return list(found)


def results_above(path: Path) -> Path | None:
    """The results folder that `path` lies in, if any: the nearest folder above it that holds records."""
    return next((folder for folder, _ in names_of(path)), None)


def results_around(path: Path) -> Path | None:
    """The results folder that `path` lies in, with records or without: there, `experiment.json` lies at its top.

    That of a model's export lies next to the model, and marks no results.
    """
    if (found := results_above(path)) is not None:
        return found
    for place in map(Path, (os.path.abspath(path), os.path.realpath(path))):
        if folder := next((folder for folder in place.parents if (folder / CONFIG).is_file()), None):
            return None if (folder / "config.json").exists() else folder.resolve()
    return None


def results_folder(given: Path | None) -> Path:
    """`given`, or the folder below results/ that was worked on last.

    Raises:
        InputError: there is none, or `given` holds no records.
    """
    if given is not None:
        if not given.is_dir():
            raise InputError(f"{given} is not a folder; give a results folder such as results/demo with --results")
        if not any((given / name).exists() for name in ("tracking", "experiment.json")):
            raise InputError(f"{given} holds no results of a run; give a folder such as results/demo with --results")
        return given
    found = [path for path in Path("results").glob("*") if (path / "tracking").is_dir()]
    if not found:
        raise InputError(f"no results below {Path('results').resolve()}; run an experiment first, or give --results")
    return max(found, key=lambda path: (path / "tracking").stat().st_mtime)
