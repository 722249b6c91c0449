"""The spools and manifests of a results folder, and who made which file."""

import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpar import files
from dpar.tracking.environment import machine
from dpar.tracking.hashes import Artefact
from dpar.tracking.spool import EVENTS, LOCK, MANIFEST, spool_root


def spools(results: str | Path) -> list[Path]:
    """The folders of all recorded jobs, oldest first."""
    found = [path.parent for path in spool_root(results).glob(f"*/*/{EVENTS}")]
    return sorted(found, key=lambda spool: (_first_time(spool), spool))


def spool_key(spool: Path) -> str:
    """What a spool is called everywhere else: its rule, its folder and the time of its first event (ms since 1970)."""
    return f"{spool.parent.name}/{spool.name}@{_first_time(spool)}"


def _first_time(spool: Path) -> int:
    with open(spool / EVENTS, "rb") as file:
        line = file.readline()
    try:
        return int(json.loads(line)["t"])
    except (ValueError, KeyError, TypeError):  # not written yet, or torn
        return 0


def read_events(spool: Path) -> Iterator[dict[str, Any]]:
    """The events of a spool in order; lines that a kill or a full disk tore are left out."""
    with open(spool / EVENTS, "rb") as file:
        for line in file:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and "event" in event and line.endswith(b"\n"):
                yield event


def is_running(spool: Path, host: str) -> bool | None:
    """Whether the job still holds its lock; None where that cannot be told, as when it ran on another host."""
    descriptor = os.open(spool / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False if host == machine()["host"] else None


@dataclass(frozen=True)
class Manifest:
    """What a job that ended well has read and made."""

    spool: Path
    rule: str
    name: str
    commit: str | None
    dirty: bool
    config: str
    experiment: str
    started: float
    params: dict[str, Any]
    inputs: tuple[Artefact, ...]
    outputs: tuple[Artefact, ...]

    @classmethod
    def load(cls, path: Path) -> "Manifest":
        """The manifest in the file `path`.

        Raises:
            InputError: it cannot be read.
        """
        value = files.read_json(path)
        plain = ("rule", "name", "commit", "dirty", "config", "experiment", "started", "params")
        inputs = tuple(map(Artefact.from_json, value["inputs"]))
        outputs = tuple(map(Artefact.from_json, value["outputs"]))
        return cls(spool=path.parent, inputs=inputs, outputs=outputs, **{key: value[key] for key in plain})


def files_of(artefact: Artefact) -> Iterator[tuple[str, str]]:
    """Path (as the artefact's own) and sha256 of every file of an artefact."""
    for record in artefact.files:
        yield (f"{artefact.path}/{record.path}" if record.path else artefact.path), record.sha256


class Ledger:
    """All manifests of a results folder."""

    def __init__(self, results: str | Path):
        self.results = Path(results)
        found = [Manifest.load(spool / MANIFEST) for spool in spools(results) if (spool / MANIFEST).exists()]
        self.manifests = sorted(found, key=lambda manifest: manifest.started)
        self._by_file: dict[tuple[str, str], Manifest] = {}
        self._by_path: dict[str, Manifest] = {}
        self._by_content: dict[str, Manifest] = {}
        for manifest in self.manifests:
            handed_out = self._is_handed_out(manifest)
            for artefact in manifest.outputs:
                for path, sha256 in files_of(artefact):
                    self._by_path[path] = manifest
                    if not handed_out:
                        self._by_file[path, sha256] = self._by_content[sha256] = manifest
                    for folder in Path(path).parents:
                        self._by_path[folder.as_posix()] = manifest
                self._by_path[artefact.path] = manifest
                if not handed_out:
                    self._by_content[artefact.sha256] = manifest

    def _is_handed_out(self, manifest: Manifest) -> bool:
        """Whether the job trained no step but wrote again what a training before it had kept of the same state."""
        made = (file for artefact in manifest.outputs for file in files_of(artefact))
        return (
            manifest.rule == "train_model"
            and all(file in self._by_file for file in made)
            and not any(event["event"] == "commit" for event in read_events(manifest.spool))
        )

    def producer(self, path: str, sha256: str) -> Manifest | None:
        """The job that last made the file `path` with this content; else one that made this content elsewhere.

        A training that had kept a state writes it again without a step: who trained it has made it.
        """
        return self._by_file.get((path, sha256)) or self._by_content.get(sha256)

    def latest(self, path: str) -> Manifest | None:
        """The job that last made the file `path`, or something in the folder `path`, whatever is in it now."""
        return self._by_path.get(path)

    def producers(self, artefact: Artefact) -> list[Manifest]:
        """The jobs that made the files of an artefact, each once."""
        found = [self.producer(path, sha256) for path, sha256 in files_of(artefact)]
        return list({manifest.spool: manifest for manifest in found if manifest}.values())
