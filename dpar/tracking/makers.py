"""Makers of files: whether a file is as its last job left it, and whether that is the job that is wanted.

The manifests of finished jobs decide. In addition, `tracking/makers/` holds one small file per output,
so that a starting job need not read thousands of manifests: it is written last, and only a cache.
"""

import getpass
import glob
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dpar import files
from dpar.errors import InputError
from dpar.statement import may_state, stated
from dpar.tracking.hashes import Artefact, HashCache, content_files, portable_path
from dpar.tracking.ledger import JobManifest, Ledger, files_of, minute_of, read_events
from dpar.tracking.places import CONFIG, EVENTS, MANIFEST, names_of, results_around, slug_of, spool_root
from dpar.tracking.replay import replay
from dpar.tracking.settings import check_settings
from dpar.tracking.unrecorded import Unrecorded, check_alone, cure, listed, wrong

ACCEPT, ACCEPTED = "accept", "accepted by hand"
"""The rule of records that were made by hand, and how their names begin."""


@dataclass(frozen=True)
class Wanted:
    """A file or folder to read, and the names of the jobs of which one must have made it; none: whichever did.

    What decides no bit of the outputs, such as the state from which a training goes on, is not `stated` in them.
    """

    path: Path
    makers: tuple[str, ...] = ()
    stated: bool = True


def made_by(makers: str | tuple[str, ...], *paths: str | Path, stated: bool = True) -> list[Wanted]:
    """`paths` as inputs of a job, each of which one of the jobs named `makers` must have made."""
    return [Wanted(Path(path), (makers,) if isinstance(makers, str) else makers, stated) for path in paths]


@dataclass(frozen=True)
class Record:
    """The last maker of a file, by the job's name, and its content; no name if one without was accepted by hand."""

    path: str
    sha256: str
    maker: str | None
    spool: str
    when: float


class Makers:
    """The makers of a results folder's files.

    Args:
        keep: cache findings there, for later jobs.
    """

    def __init__(self, results: str | Path, *, keep: bool = True):
        self.results, self.keep = Path(results), keep
        self.folder = self.results / "tracking" / "makers"
        self._hashes = HashCache(results, keep=keep)
        self._known: dict[Path, Makers] = {
            self.results.resolve(): self
        }  # and other results folders, from which files are read

    @cached_property
    def ledger(self) -> Ledger:
        """All manifests, read when they are needed."""
        return Ledger(self.results)

    @cached_property
    def unrecorded(self) -> Unrecorded:
        """The files that have no record."""
        return Unrecorded(self.results, lambda path: (found := self.last(path)) and found.when, self.digest_of)

    def checked(self, wanted: str | Path | Wanted) -> Artefact:
        """The artefact to read, with its digests, if it is as its maker left it and of the right maker.

        What has no record is taken as given if none of the jobs that are wanted ever ran here, or none is wanted; what
        lies elsewhere is, too. Neither may be a copy of the file of another job.

        Raises:
            InputError: there is nothing, it was changed or exchanged, no finished job has made it, or another than it
                should be.
        """
        wanted = wanted if isinstance(wanted, Wanted) else Wanted(Path(wanted))
        artefact = self._hashes.artefact(wanted.path)
        for path, sha256 in files_of(artefact):
            if not Path(path).is_absolute():
                self.check(path, sha256, wanted.makers)
            elif wanted.makers:
                self._check_copy(path, sha256, wanted.makers)
            _check_known(self.results / path, self._known, wanted.makers, sha256)
        return artefact

    def remember(self, maker: str, spool: Path, outputs: Iterable[Artefact]) -> None:
        """Keeps who made each file of `outputs`."""
        key = f"{spool.parent.name}/{spool.name}"
        for path, sha256 in (file for artefact in outputs for file in files_of(artefact)):
            self._keep(Record(path, sha256, maker, key, time.time()))

    def last(self, path: str, sha256: str | None = None) -> Record | None:
        """The record of who made the file `path` last; the first that fits, where it is known to be `sha256` now."""
        kept = self._kept(path)
        stands = kept is not None and (spool_root(self.results) / kept.spool / MANIFEST).exists()
        if kept and stands and kept.sha256 == sha256:
            return kept
        found = self.ledger.last(path)
        if kept and (found is None or (not stands and kept.when > found[0].ended)):  # the manifest was lost
            return kept
        if found is None:
            return None
        manifest, file = found
        key = f"{manifest.spool.parent.name}/{manifest.spool.name}"
        record = Record(path, file.sha256, self._name(manifest, path), key, manifest.ended)
        if record.sha256 == sha256 and self.keep:
            with suppress(InputError, OSError):  # a cache
                self._keep(record)
        return record

    def _name(self, manifest: JobManifest, path: str) -> str | None:
        """The name of the job, or of that whose file was changed, where a hand has accepted the change."""
        if manifest.rule != ACCEPT:
            return manifest.name
        jobs = (job for job in reversed(self.ledger.manifests) if job.rule != ACCEPT)
        return next((job.name for job in jobs if any(path == made for made, _ in job.made)), None)

    def owner(self, path: str, sha256: str) -> str | None:
        """The job that a file says, or that is kept, to have made it as it is; None if that is not known."""
        file = self.results / path
        with suppress(InputError):  # it was changed
            if may_state(file) and (said := stated(file)) is not None:
                return said
        kept = self._kept(path)
        return kept.maker if kept and kept.sha256 == sha256 else None

    def knows(self, path: str) -> bool:
        """Whether a file has a record."""
        return self._kept(path) is not None or self.last(path) is not None

    def digest_of(self, path: str) -> str:
        """The SHA-256 of a file as it is now."""
        return self._hashes.artefact(self.results / path).sha256

    def check(self, path: str, sha256: str, makers: tuple[str, ...]) -> None:
        """Makes sure of one file by its record.

        Raises:
            InputError: as `checked`.
        """
        record = self.last(path, sha256)
        if record is None:
            self.unrecorded.check(self.results / path, makers)
            ran = any(True for maker in makers for _ in self._spools(maker))
            if ran or (makers and (self.ledger.damaged or self.ledger.made_as(sha256))):
                raise InputError(self._unknown(path, sha256, makers))
        elif record.sha256 != sha256:
            file = self.results / path
            raise InputError(
                f"{file} is not what {record.maker or 'its record'} left on {minute_of(record.when)} "
                f"(sha256 {record.sha256[:12]}, now {sha256[:12]}){self._what(path, sha256)}"
                f"{self.ended_badly((record.maker,) if record.maker else ())}: put it back, or {cure(file)}"
            )
        elif makers and record.maker is not None and record.maker not in makers:
            raise InputError(wrong(self.results / path, record.maker, makers))

    def _check_copy(self, path: str, sha256: str, makers: tuple[str, ...]) -> None:
        if (known := self.ledger.made_as(sha256)) is not None:
            name = self._name(*known)
            if name is not None and name not in makers:
                raise InputError(wrong(Path(path), name, makers))
        else:
            _check_unrecorded(Path(path), results_around(Path(path)), makers, self._known)

    def _spools(self, maker: str) -> Iterator[Path]:
        """The records that jobs of this name have left here, finished or not."""
        rule, slug = maker.partition("[")[0], glob.escape(slug_of(maker))
        return (spool_root(self.results) / rule).glob(f"{slug}-{'[0-9a-f]' * 16}")

    def ended_badly(self, makers: tuple[str, ...]) -> str:
        """The end of the last run of one of these jobs, if it was not a good one."""
        spools = [spool for maker in makers for spool in self._spools(maker) if (spool / EVENTS).is_file()]
        last = [runs[-1] for runs in (replay(read_events(spool)) for spool in spools) if runs]
        if not last or (run := max(last, key=lambda run: run.ended or math.inf)).status == "FINISHED":
            return ""
        return f"; {run.about['name']}, in its last run, did not end well" + (f" ({run.reason})" if run.reason else "")

    def _unknown(self, path: str, sha256: str, makers: tuple[str, ...]) -> str:
        why = "no finished job has it among its outputs" + (f", expected {listed(makers)}" if makers else "")
        if self.ledger.damaged:
            why += f"; {len(self.ledger.damaged)} records are damaged, such as {self.ledger.damaged[0]}"
        why += self._what(path, sha256) + self.ended_badly(makers)
        return f"{self.results / path}: {why}: {cure(self.results / path)}"

    def _what(self, path: str, sha256: str) -> str:
        """Digest of the content, where it is known."""
        if (known := self.ledger.made_as(sha256)) is None:
            return ""
        manifest, place = known
        if place == path:
            return f"; it is what {manifest.name} had made on {minute_of(manifest.ended)}"
        return f"; it is the content of {place}, made by {manifest.name}"

    def _entry(self, path: str) -> Path:
        return self.folder / f"{files.digest(path)}.json"

    def _keep(self, record: Record) -> None:
        files.write_json(self._entry(record.path), asdict(record))

    def _kept(self, path: str) -> Record | None:
        with suppress(InputError), files.fields_of(self._entry(path)):  # what cannot be read is asked of the manifests
            record = Record(**files.read_json(self._entry(path), kind=dict))
            return record if record.path == path else None
        return None


def check(experiment: str | Path, inputs: Iterable[str | Path | Wanted]) -> None:
    """Makes sure of inputs of a job that are read before it begins, as the job itself does.

    Args:
        experiment: the resolved experiment, `experiment.json` in the results folder.

    Raises:
        InputError: as `Makers.checked`.
    """
    check_settings(Path(experiment), by_job=True)
    makers = Makers(Path(experiment).parent)
    for wanted in inputs:
        makers.checked(wanted)


def check_recorded(*wanted: str | Path | Wanted) -> None:
    """Makes sure of files and folders outside any job: what a finished job has made must be as it left it.

    Of files without records what they say of themselves must be what is wanted, if a maker is.

    Raises:
        InputError: a file was changed or exchanged.
    """
    known: dict[Path, Makers] = {}
    inside: dict[Path, tuple[bool, Path | None]] = {}  # folder -> whether it has records; its results folder
    items = (item if isinstance(item, Wanted) else Wanted(Path(item)) for item in wanted)
    for file, makers in ((f, w.makers) for w in items if w.path.exists() for f in content_files(w.path)):
        if file.parent not in inside:  # asked once of a folder: there may be millions of images that are nobody's
            inside[file.parent] = bool(names_of(file.parent / "any")), results_around(file.parent / "any")
        recorded, results = inside[file.parent]
        if not (recorded or file.is_symlink()) or not _check_known(file, known, makers):
            _check_unrecorded(file, results_around(file) if file.is_symlink() else results, makers, known)


def _check_known(
    file: Path, known: dict[Path, Makers], makers: tuple[str, ...] = (), sha256: str | None = None
) -> bool:
    """Makes sure of a file by each name that it has in a results folder and that has a record there, if any has."""
    found = False
    for results, path in names_of(file):
        records = known.setdefault(results, Makers(results, keep=False))
        if records.knows(path):
            sha256 = sha256 or records.digest_of(path)
            records.check(path, sha256, makers)
            found = True
    return found


def _check_unrecorded(file: Path, results: Path | None, makers: tuple[str, ...], known: dict[Path, Makers]) -> None:
    """Makes sure of a file that has no record by what it says of itself, and what others in its results folder say."""
    if results is not None:
        known.setdefault(results, Makers(results, keep=False)).unrecorded.check(file, makers)
    elif makers:
        check_alone(file, makers)


def recorded_json(wanted: str | Path | Wanted) -> dict[str, Any]:
    """The JSON object in a file, to be read outside any job.

    Raises:
        InputError: it is missing or damaged, was changed since a job made it, or is of another job than wanted.
    """
    check_recorded(wanted)
    return files.read_json(wanted.path if isinstance(wanted, Wanted) else wanted, kind=dict)


@dataclass(frozen=True)
class Accepted:
    """A file whose change was accepted: its digest before, if a job had made it, and now."""

    path: Path
    before: str | None
    now: str


def accept(results: Path, paths: Iterable[Path]) -> list[Accepted]:
    """Takes files as they are, in one record that says when, by whom, and what they were before.

    JSON that carries its own checksum gets the one that fits. Of a folder, the files that differ from their records.

    Raises:
        InputError: a path does not exist, or lies in no results folder.
    """
    from dpar.tracking.spool import job  # which checks by this module
    from dpar.weights import has_lost_seal  # which imports torch

    makers, before, found = Makers(results), [], []
    for file in dict.fromkeys(file for path in paths for file in _acceptable(results, path)):
        if file.suffix == ".json":
            with suppress(InputError):  # not ours: taken as it is
                files.reseal(file, lost=has_lost_seal(file))
        path = portable_path(file, results)
        now = makers.digest_of(path)
        known = makers.ledger.last(path)
        if not path.startswith("state/") and (not known or known[1].sha256 != now):
            found.append(Accepted(file, known[1].sha256 if known else None, now))
            if known:
                size, sha256 = known[1].bytes, known[1].sha256
                before.append(Artefact(path, "file", size, sha256, (type(known[1])("", size, sha256),)))
    if found:
        shown = portable_path(found[0].path, results) + (f" and {len(found) - 1} more" if len(found) > 1 else "")
        with job(
            rule=ACCEPT,
            experiment=results / "experiment.json",
            name=f"{ACCEPTED}[{shown}]",
            inputs=before,
            outputs=[accepted.path for accepted in found],
            params={"by": getpass.getuser(), "when": time.strftime("%Y-%m-%d %H:%M:%S %z"), "files": len(found)},
        ):
            pass
    return found


def _acceptable(results: Path, path: Path) -> Iterator[Path]:
    """The files of `path` that stages read: no records, logs or hidden files."""
    if not path.exists():
        raise InputError(f"{path} does not exist; give a file or folder of {results}")
    for file in content_files(path):
        parts = Path(portable_path(file, results)).parts
        if parts[0] not in ("tracking", "logs", CONFIG) and not any(part.startswith(".") for part in parts):
            yield file
