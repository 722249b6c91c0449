"""The spools and manifests of a results folder, and who made which file."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpar import files
from dpar.errors import InputError
from dpar.tracking.environment import machine
from dpar.tracking.events import MANIFEST_FIELDS, manifest_fault, read_event
from dpar.tracking.hashes import Artefact, FileRecord
from dpar.tracking.places import EVENTS, LOCK, MANIFEST, spool_root
from dpar.tracking.replay import Run

_ROUNDED = 0.002  # seconds: times in records are rounded to a thousandth


def spools(results: str | Path) -> list[Path]:
    """The folders of all recorded jobs, oldest first."""
    found = [path.parent for path in spool_root(results).glob(f"*/*/{EVENTS}")]
    return sorted(found, key=lambda spool: (_first_time(spool), spool))


def spool_key(spool: Path) -> str:
    """A spool's name everywhere else: its rule, its folder and the time of its first event (ms since 1970)."""
    return f"{spool.parent.name}/{spool.name}@{_first_time(spool)}"


def _first_time(spool: Path) -> int:
    with open(spool / EVENTS, "rb") as file:
        line = file.readline()
    try:
        return int(json.loads(line)["t"])
    except (ValueError, KeyError, TypeError):  # not written yet, or torn
        return 0


def read_events(spool: Path, problems: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """The events of a spool in order; lines that are damaged or torn are left out, and named in `problems`.

    A last line without an end is not named: it is being written, or its job was killed, and did not say it.
    """
    with open(spool / EVENTS, "rb") as file:
        for number, line in enumerate(file, start=1):
            event, wrong = read_event(line) if line.strip() else (None, "")
            if not line.endswith(b"\n"):
                return
            if event:
                yield event
            elif wrong and problems is not None:
                problems.append(f"{spool / EVENTS}, line {number}, {wrong}")


def is_running(spool: Path, host: str) -> bool | None:
    """Whether the job still holds its lock; None where that cannot be told, as when it ran on another host."""
    try:
        locked = files.is_locked(spool / LOCK)
    except OSError:  # lost, or another's to read
        return None
    return True if locked else False if host == machine()["host"] else None


@dataclass(frozen=True)
class JobManifest:
    """Inputs and outputs of a job that ended well."""

    spool: Path
    rule: str
    name: str
    commit: str | None
    dirty: bool
    config: str
    experiment: str
    started: float
    wall_s: float
    params: dict[str, Any]
    inputs: tuple[Artefact, ...]
    outputs: tuple[Artefact, ...]
    machine: dict[str, str]

    @classmethod
    def load(cls, path: Path) -> "JobManifest":
        """The manifest in the file `path`.

        Raises:
            InputError: it cannot be read, or lacks something.
        """
        value = files.read_json(path)
        wrong = manifest_fault(value)
        if wrong:
            raise InputError(f"{path} is no manifest: it lacks {wrong!r}, or has it of another type; run its job again")
        inputs = tuple(map(Artefact.from_json, value["inputs"]))
        outputs = tuple(map(Artefact.from_json, value["outputs"]))
        known = {key: value[key] for key in MANIFEST_FIELDS}
        place = value.get("machine")
        known["machine"] = place if isinstance(place, dict) else {}
        return cls(spool=path.parent, inputs=inputs, outputs=outputs, **known)

    @property
    def ended(self) -> float:
        """When the job had made its outputs, in seconds since 1970."""
        return float(self.started) + float(self.wall_s)

    @property
    def made(self) -> Iterator[tuple[str, str]]:
        """Path and sha256 of every file that the job made."""
        return (file for artefact in self.outputs for file in files_of(artefact))


def load_manifest(spool: Path) -> JobManifest | None:
    """The manifest of a spool; None where there is none, or none that can be read."""
    try:
        return JobManifest.load(spool / MANIFEST) if (spool / MANIFEST).exists() else None
    except InputError:
        return None


def faults(spool: Path, run: Run | None, running: bool | None) -> list[str]:
    """Faults of a record whose events give `run`, other than in lines of its events."""
    if run is None:
        return [f"{spool / EVENTS} does not say that a job began"] if not running else []
    if run.status == "RUNNING":
        manifest = load_manifest(spool) if running is False else None
        began = max(event["t"] for event in read_events(spool) if event["event"] == "start") / 1000
        broken = manifest is not None and manifest.ended >= began - _ROUNDED  # else it is that of a rerun before
        return [f"{spool / EVENTS} breaks off: its manifest says that the job ended well"] if broken else []
    try:
        if run.status == "FINISHED":
            JobManifest.load(spool / MANIFEST)
    except InputError as error:
        return [str(error)]
    return []


def minute_of(when: float) -> str:
    """A time in seconds since 1970 in words, by this machine's clock."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(when))


def files_of(artefact: Artefact) -> Iterator[tuple[str, str]]:
    """Path (as the artefact's own) and sha256 of every file of an artefact."""
    for record in artefact.files:
        yield (f"{artefact.path}/{record.path}" if record.path else artefact.path), record.sha256


class Ledger:
    """All manifests of a results folder that can be read, in the order in which their jobs ended.

    Attributes:
        damaged: the others; they prove nothing.
    """

    def __init__(self, results: str | Path):
        self.results = Path(results)
        read = {spool: load_manifest(spool) for spool in spools(results)}
        self.damaged = [spool / MANIFEST for spool, found in read.items() if not found and (spool / MANIFEST).exists()]
        self.manifests = sorted(filter(None, read.values()), key=lambda manifest: manifest.ended)
        self._last: dict[str, tuple[JobManifest, FileRecord]] = {}
        self._by_file: dict[tuple[str, str], JobManifest] = {}
        self._by_path: dict[str, JobManifest] = {}
        self._by_content: dict[str, JobManifest] = {}
        for manifest in self.manifests:
            handed_out = self._is_handed_out(manifest)
            for artefact in manifest.outputs:
                for record, (path, sha256) in zip(artefact.files, files_of(artefact), strict=True):
                    self._last[path] = manifest, record
                    self._by_path[path] = manifest
                    if not handed_out:
                        self._by_file[path, sha256] = self._by_content[sha256] = manifest
                    for folder in Path(path).parents:
                        self._by_path[folder.as_posix()] = manifest
                self._by_path[artefact.path] = manifest
                if not handed_out:
                    self._by_content[artefact.sha256] = manifest

    def _is_handed_out(self, manifest: JobManifest) -> bool:
        """Whether the job trained no step but wrote again what a training before it had kept of the same state."""
        return (
            manifest.rule == "train_model"
            and all(file in self._by_file for file in manifest.made)
            and not any(event["event"] == "commit" for event in read_events(manifest.spool))
        )

    def producer(self, path: str, sha256: str) -> JobManifest | None:
        """The job that last made the file `path` with this content; else one that made this content elsewhere.

        A training that had kept a state writes it again without a step: who trained it has made it.
        """
        return self._by_file.get((path, sha256)) or self._by_content.get(sha256)

    def last(self, path: str) -> tuple[JobManifest, FileRecord] | None:
        """The job that last made the file `path`, or the hand that accepted it, and what it was then."""
        return self._last.get(path)

    def made_as(self, sha256: str) -> tuple[JobManifest, str] | None:
        """The job that made this content, and where."""
        if (manifest := self._by_content.get(sha256)) is None:
            return None
        return next(((manifest, path) for path, found in manifest.made if found == sha256), None)

    def latest(self, path: str) -> JobManifest | None:
        """The job that last made the file `path`, or something in the folder `path`, whatever is in it now."""
        return self._by_path.get(path)

    def producers(self, artefact: Artefact) -> list[JobManifest]:
        """The jobs that made the files of an artefact, each once."""
        found = [self.producer(path, sha256) for path, sha256 in files_of(artefact)]
        return list({manifest.spool: manifest for manifest in found if manifest}.values())
