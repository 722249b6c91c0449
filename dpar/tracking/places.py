"""Where the records of jobs lie in a results folder."""

import re
from pathlib import Path

EVENTS, MANIFEST, LOCK, CONFIG = "events.jsonl", "manifest.json", "lock", "experiment.json"


def spool_root(results: str | Path) -> Path:
    """The folder of all spools of a results folder."""
    return Path(results) / "tracking" / "spool"


def slug_of(name: str) -> str:
    """The name of a job as its spool begins; the job's identity follows."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80]


def results_above(path: Path) -> Path | None:
    """The results folder that `path` lies in, if any: the nearest folder above it that holds records."""
    return next((folder for folder in path.resolve().parents if spool_root(folder).is_dir()), None)
