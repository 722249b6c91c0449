"""A stage's own record of itself: events appended to a file in the results folder, and a manifest when it ends well.

Nothing here knows MLflow, opens a socket or waits for anybody. `dpar.mirror.sync` carries the records on.
"""

import json
import logging
import math
import os
import re
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dpar import files
from dpar.errors import InputError
from dpar.launched import launched
from dpar.statement import making
from dpar.tracking.environment import git_commit, machine, versions
from dpar.tracking.hashes import Artefact, HashCache, portable_path
from dpar.tracking.ledger import files_of
from dpar.tracking.makers import ACCEPT, Makers, Wanted
from dpar.tracking.places import CONFIG, EVENTS, LOCK, MANIFEST, slug_of, spool_root
from dpar.tracking.settings import check_settings
from dpar.tracking.system import SystemSampler

logger = logging.getLogger(__name__)

Value = str | int | float | bool | None


def encode_number(value: Any) -> float | str:
    """A number as JSON can hold it: NaN and the infinities become strings that `float` reads back."""
    number = float(value)
    return number if math.isfinite(number) else str(number)


def _ends_torn(path: Path) -> bool:
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


class EventFile:
    """Lines appended to a file, each whole or recognisably torn; keeps what a full disk refuses and tries again."""

    def __init__(self, path: Path):
        self.path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        self._pending = bytearray()
        self._lock = threading.Lock()
        self._complained = False
        self._closed = False
        if _ends_torn(path):  # the process before us died in the middle of a line
            self._pending += b"\n"

    def append(self, event: str, **fields: Any) -> None:
        """Writes one event with the time (milliseconds since 1970); never raises for want of space."""
        line = json.dumps({"t": time.time_ns() // 1_000_000, "event": event, **fields}, allow_nan=False)
        with self._lock:
            if self._closed:  # a straggling thread; the descriptor may be another file's by now
                return
            self._pending += line.encode() + b"\n"
            try:
                self._flush()
            except OSError as error:
                if not self._complained:
                    logger.warning("cannot write %s (%s); records are kept in memory for now", self.path, error)
                self._complained = True

    def _flush(self) -> None:
        while self._pending:
            written = os.write(self._descriptor, self._pending)
            del self._pending[:written]

    def sync(self, *, required: bool) -> None:
        """Brings everything to the disk.

        Raises:
            OSError: it cannot be written, and `required`.
        """
        with self._lock:
            try:
                self._flush()
                os.fsync(self._descriptor)
            except OSError:
                if required:
                    raise

    def close(self) -> None:
        """Closes the file; what is said afterwards is dropped."""
        with self._lock:
            self._closed = True
            os.close(self._descriptor)


class Job:
    """Record of a running stage. All methods may be called from any thread and none waits."""

    def __init__(self, spool: Path, events: EventFile | None = None):
        self.spool = spool
        self._events = events

    def _append(self, event: str, **fields: Any) -> None:
        assert self._events is not None
        self._events.append(event, **fields)
        if event == "commit":
            self._events.sync(required=False)

    def metrics(self, values: Mapping[str, Any], *, step: int) -> None:
        """Points of curves at `step`; they show up once `commit` covers the step or the job ends well."""
        self._append("metrics", step=int(step), values={k: encode_number(v) for k, v in values.items()})

    def commit(self, step: int) -> None:
        """Says that a restart would go on after `step`: call it right after the checkpoint is in place."""
        self._append("commit", step=int(step))

    def summary(self, values: Mapping[str, Any]) -> None:
        """Single numbers that describe the whole job."""
        self._append("summary", values={k: encode_number(v) for k, v in values.items()})

    def image(self, image: str | Path | bytes, *, key: str, step: int) -> None:
        """An image (a PNG file, or its bytes) in the stepped series `key`."""
        name = f"{re.sub(r'[^A-Za-z0-9_-]+', '-', key)}-{int(step):08d}.png"
        self._keep(image, f"images/{name}")
        self._append("image", key=key, step=int(step), file=f"images/{name}")

    def figure(self, path: str | Path) -> None:
        """A small file (figure, table, page) to look at next to the job's numbers."""
        self._keep(path, f"figures/{Path(path).name}")
        self._append("figure", file=f"figures/{Path(path).name}")

    def note(self, markdown: str) -> None:
        """The job's description; a later one replaces it."""
        self._append("note", text=markdown)

    def tags(self, tags: Mapping[str, Value]) -> None:
        """Words to find the job by."""
        self._append("tags", tags={k: str(v) for k, v in tags.items()})

    def result(
        self,
        *,
        table: str,
        cell: str,
        params: Mapping[str, Value],
        metrics: Mapping[str, Any],
        sources: Iterable[str | Path] = (),
        image: str | Path | None = None,
    ) -> None:
        """One row of a table of results, shown as a run of its own below the table.

        Args:
            table: the table's name, such as `table4`.
            cell: the row's name within it, such as `dpar-e7.8-p4`.
            params: what varies and the conditions (model, threshold, images, seed, guidance, ...).
            metrics: the numbers, ours and the paper's (`eval/fid`, `paper/fid`, `cost/gflops`, ...).
            sources: the files the numbers were taken from; they lead back to the jobs that made them.
            image: a PNG of samples.
        """
        results = self.spool.parents[3]
        kept = f"images/{re.sub(r'[^A-Za-z0-9_.-]+', '-', f'{table}-{cell}')}.png" if image else None
        if image and kept:
            self._keep(image, kept)
        self._append(
            "result",
            table=table,
            cell=cell,
            params={k: str(v) for k, v in params.items()},
            metrics={k: encode_number(v) for k, v in metrics.items()},
            sources=[portable_path(path, results) for path in sources],
            image=kept,
        )

    def _keep(self, content: str | Path | bytes, name: str) -> None:
        target = self.spool / name
        try:
            files.write_bytes(target, content if isinstance(content, bytes) else Path(content).read_bytes())
        except InputError as error:  # no space for an image is no reason to stop a training
            logger.warning("%s", error)


class _SilentJob(Job):
    """The job of a rank other than 0: its numbers are rank 0's to tell."""

    def __init__(self):
        super().__init__(Path(os.devnull) / "rank" / "rule" / "key")

    def _append(self, event: str, **fields: Any) -> None:
        pass

    def _keep(self, content: str | Path | bytes, name: str) -> None:
        pass


@contextmanager
def _job_lock(path: Path, name: str) -> Iterator[None]:
    """Holds the lock file `path`; waits, and says so, while another copy of the job has it."""

    def waiting(holder: str) -> None:
        print(f"{name} is already running ({holder}); waiting for it to end", file=sys.stderr, flush=True)

    with files.file_lock(path, waiting=waiting) as lock:
        assert lock
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {machine()['host']}\n")
        lock.flush()
        yield


@contextmanager
def _terminable() -> Iterator[None]:
    """Turns SIGTERM into SystemExit, unless the stage has its own way or is not in the main thread."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def stop(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@dataclass(frozen=True)
class _Work:
    """A job about to run: what it is called, reads and makes, and the folder of its record."""

    rule: str
    name: str
    experiment: Path
    settings: dict[str, Any]
    params: dict[str, Value]
    read: list[Artefact]
    unstated: frozenset[str]
    outputs: list[Path]
    identity: str
    cache: HashCache
    makers: Makers

    @classmethod
    def of(
        cls,
        rule: str,
        experiment: Path,
        name: str,
        inputs: Iterable[str | Path | Wanted | Artefact],
        outputs: list[Path],
        params: dict[str, Value],
    ) -> "_Work":
        """The job, once its inputs are found to be what their makers left."""
        results, inputs = experiment.parent, list(inputs)
        settings = check_settings(experiment, by_job=rule != ACCEPT)
        cache, makers = HashCache(results), Makers(results)
        read = [item if isinstance(item, Artefact) else makers.checked(item) for item in inputs if item != experiment]
        unstated = {
            portable_path(item.path, results) for item in inputs if isinstance(item, Wanted) and not item.stated
        }
        content = sorted((artefact.path, artefact.sha256) for artefact in read)
        made = sorted(portable_path(path, results) for path in outputs)
        # the same for two jobs that do the same work on the same content
        identity = files.digest([rule, name, params, content, made])
        return cls(
            rule, name, experiment, settings, params, read, frozenset(unstated), outputs, identity, cache, makers
        )

    @property
    def spool(self) -> Path:
        """The folder of the record."""
        return spool_root(self.experiment.parent) / self.rule / f"{slug_of(self.name)}-{self.identity}"

    @property
    def read_here(self) -> dict[str, str]:
        """Path -> SHA-256 of each file of the results folder that is read, and stated in the outputs."""
        stated = (artefact for artefact in self.read if artefact.path not in self.unstated)
        found = (file for artefact in stated for file in files_of(artefact))
        return {path: sha256 for path, sha256 in found if not Path(path).is_absolute()}

    def made(self, path: Path) -> Artefact:
        """An output as it is now, without the files that other jobs have put into a folder."""
        found = self.cache.artefact(path)
        if found.kind == "file":
            return found
        return found.only(lambda file: self.makers.owner(f"{found.path}/{file.path}", file.sha256) in (None, self.name))

    def about(self) -> dict[str, Any]:
        """Everything that the record says of the job before it runs, on this machine and at this commit."""
        commit, dirty = git_commit()
        return {
            "rule": self.rule,
            "name": self.name,
            "identity": self.identity,
            "experiment": self.settings.get("name", self.experiment.parent.name),
            "config": files.digest(self.settings),
            "commit": commit,
            "dirty": dirty,
            "params": self.params,
            "machine": machine(),
            "versions": versions(),
        }

    def finish(self, about: dict[str, Any], started: float, written: list[Artefact]) -> None:
        """Writes the manifest, and keeps who has made the outputs."""
        manifest = about | {
            "started": started,
            "wall_s": round(time.time() - started, 3),
            "inputs": [asdict(artefact) for artefact in self.read],
            "outputs": [asdict(artefact) for artefact in written],
        }
        files.write_json(self.spool / MANIFEST, manifest)
        if self.rule != ACCEPT:
            self.makers.remember(self.name, self.spool, written)


@contextmanager
def _locked(work: _Work) -> Iterator[None]:
    """The folder of the job's record, to which no other copy of the job writes."""
    with ExitStack() as lock:
        try:
            work.spool.mkdir(parents=True, exist_ok=True)
            lock.enter_context(_job_lock(work.spool / LOCK, work.name))
        except OSError as error:
            raise InputError(
                f"cannot record the job in {work.spool}: {error.strerror}; free space or fix permissions"
            ) from None
        yield


@contextmanager
def _recorded(work: _Work) -> Iterator[Job]:
    """The record from start to end; its lock is held."""
    spool, about, started = work.spool, work.about(), time.time()
    events = EventFile(spool / EVENTS)
    status, reason = "FAILED", None
    try:
        shutil.copyfile(work.experiment, spool / CONFIG)
        for path in work.outputs:
            files.remove_leftovers(path)
        events.append("start", pid=os.getpid(), inputs=[_brief(artefact) for artefact in work.read], **about)
        with (
            _terminable(),
            making(work.name, work.outputs, work.read_here),
            SystemSampler(lambda values: events.append("system", values=values)) as sampler,
        ):
            running = Job(spool, events)
            yield running
            written = [work.made(path) for path in work.outputs]
            running.summary({"io/out_bytes": sum(artefact.bytes for artefact in written), **sampler.peaks()})
            work.finish(about, started, written)
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit, GeneratorExit) as error:
        status, reason = "KILLED", type(error).__name__
        raise
    except BaseException as error:
        reason = "".join(traceback.format_exception_only(error)).strip()[-2000:]
        raise
    finally:
        events.append("end", status=status, reason=reason)
        try:
            events.sync(required=status == "FINISHED")
        except OSError as error:
            (spool / MANIFEST).unlink(missing_ok=True)
            raise InputError(f"cannot write {events.path}: {error.strerror}; free some space and run again") from None
        finally:
            events.close()


@contextmanager
def job(
    *,
    rule: str,
    experiment: str | Path,
    name: str | None = None,
    inputs: Iterable[str | Path | Wanted | Artefact] = (),
    outputs: Iterable[str | Path] = (),
    params: Mapping[str, Value] | None = None,
) -> Iterator[Job]:
    """The record of one job, kept below `tracking/spool/<rule>/` in the folder of `experiment`.

    A rerun of the same job (rule, name, params, content of the inputs, places of the outputs) goes on in the same
    record, any other gets a new one. Ends as FINISHED with every output hashed, as KILLED (Ctrl-C, SIGTERM, exit), or
    as FAILED; the manifest of the last rerun that ended well stays until then, and says of each output whether it is
    still that one. A second copy of a running job waits for the first. On ranks other than 0 it does nothing.

    Args:
        rule: the rule of the graph.
        experiment: the resolved experiment, `experiment.json` in the results folder.
        name: how people shall know the job, such as `train_model[dpar]`; the rule's name by default.
        inputs: files and folders the job reads, with the jobs that must have made them (`made_by`); what lies in the
            results folder must be as the last job that made it left it. An `Artefact` is taken as it is.
        outputs: files and folders the job makes.
        params: what was decided for the job, flat, with dotted names.

    Raises:
        InputError: an input, or at the end an output, is missing; an input was changed, or is not what is wanted; or
            the record cannot be written at the start or end.
    """
    place = launched()
    if place and place.rank != 0:
        yield _SilentJob()
        return
    made = [Path(path) for path in outputs]
    work = _Work.of(rule, Path(experiment), name or rule, inputs, made, dict(params or {}))
    with _locked(work), _recorded(work) as running:
        yield running


def _brief(artefact: Artefact) -> dict[str, Any]:
    return {"path": artefact.path, "kind": artefact.kind, "bytes": artefact.bytes, "sha256": artefact.sha256}
