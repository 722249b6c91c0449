"""Carries spools into MLflow: only what is new, after any interruption, and with the same result."""

import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpar import files
from dpar.errors import InputError
from dpar.mirror import views
from dpar.mirror.deadline import deadline
from dpar.mirror.labels import MANY, grouped, job_tags, state_tags
from dpar.mirror.runs import SMALL, RunIndex, RunWriter, readable_text
from dpar.mirror.store import (
    Store,
    database_aside,
    open_store,
    profile_of,
    put_database,
    sqlite_uri,
    tracking_folder,
    writer_lock,
)
from dpar.tracking import lineage
from dpar.tracking.ledger import (
    JobManifest,
    Ledger,
    faults,
    files_of,
    is_running,
    load_manifest,
    read_events,
    spool_key,
    spools,
)
from dpar.tracking.replay import Point, Run, replay
from dpar.tracking.spool import CONFIG, EVENTS, MANIFEST

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SHOWN = frozenset({".json", ".jsonl", ".png", ".svg", ".md", ".csv", ".html", ".txt", ".tex"})
DEADLINE = 60.0  # seconds for one round with a server, after which records wait on disk
_DAMAGED = "dpar.damaged"  # the tag of a run whose record is not whole
_SILENCE = 600.0  # seconds without a word after which a job of another host is called stale
_REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")  # this record cannot be shown; others can


@dataclass
class Counts:
    """Outcome of one round."""

    jobs: int = 0
    points: int = 0
    running: int = 0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{self.jobs} jobs with news, {self.points} values, {self.running} still running"
        text += f", {len(self.problems)} records left out or not whole" if self.problems else ""
        return "\n".join([text, *(f"problem: {problem}" for problem in self.problems)])


def sync(store: Store, *, wait: bool = True) -> Counts | None:
    """Carries all news of the store's results folder into it; None if another process is at it and not `wait`.

    Raises:
        InputError: the store cannot be used now; nothing is lost, the spools keep everything.
    """
    with _in_time(store), writer_lock(store, wait=wait) as free:
        return _round(store, open_store(store)) if free else None


def _in_time(store: Store) -> AbstractContextManager[None]:
    """Ends a round with a server that takes too long; the folder's own database takes as long as it needs."""
    if store.database:
        return nullcontext()
    return deadline(
        DEADLINE,
        f"{store.describe()} has not taken everything in {DEADLINE:.0f} s; the rest waits on disk: `dpar track sync` "
        "goes on from there, `dpar track sync --watch 20` until all is done",
    )


def watch(store: Store, seconds: float, until_pid: int | None = None) -> None:
    """Syncs every `seconds` until the process `until_pid` has gone (or for ever), and then once more."""
    client, said = None, ""
    while True:
        last = until_pid is not None and not _exists(until_pid)
        try:
            with _in_time(store), writer_lock(store):
                client = client or open_store(store)
                counts = _round(store, client)
            news = str(counts) if counts.jobs or counts.problems else ""
        except (InputError, OSError) as error:
            client, news = None, f"error: {error}"
        if news and news != said:
            print(time.strftime("%H:%M:%S"), news, file=sys.stderr, flush=True)
            said = news
        if last:
            return
        until = time.monotonic() + seconds
        while time.monotonic() < until and (until_pid is None or _exists(until_pid)):
            time.sleep(min(0.5, seconds))


def rebuild(store: Store) -> Counts:
    """Makes the store again from the spools; of the results folder's own store, the old one stays until that is done.

    Raises:
        InputError: the store cannot be used.
    """
    with writer_lock(store):
        if not store.embedded or store.database is None or store.artifacts is None:
            with _in_time(store):
                return _round(store, open_store(store))
        old = [path for path in store.artifacts.glob("*/*") if path.is_dir()]
        files.remove_leftovers(store.database)
        with database_aside(store.database) as aside:
            made = replace(store, uri=sqlite_uri(aside), database=aside)
            counts = _round(made, open_store(made))
            put_database(aside, store.database)
        for folder in old:
            shutil.rmtree(folder)
        return counts


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # one that has ended but whose parent has not asked yet is a zombie
        return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except (PermissionError, FileNotFoundError, IndexError):
        return True


def _records_identity(results: Path) -> str:
    """A name for this folder's records that stays when the folder is moved."""
    path = tracking_folder(results) / "id"
    if not path.exists() or not path.read_bytes().strip().isalnum():  # absent, or damaged
        files.write_text(path, uuid.uuid4().hex[:16])
    return path.read_text("utf-8").strip()


def _round(store: Store, client: "MlflowClient") -> Counts:
    from mlflow.exceptions import MlflowException

    try:
        index = RunIndex(client, profile_of(store), _records_identity(store.results), store.artifacts)
        return Round(store.results, index).all()
    except MlflowException as error:
        raise InputError(
            f"the tracking store {store.describe()} refused: {store.reason(error)}; the records wait on disk, "
            "run `dpar track sync` again later"
        ) from None
    except OSError as error:  # the disk of the store is full, or gone
        raise InputError(
            f"the tracking store {store.describe()} cannot take {error.filename or 'a file'}: "
            f"{error.strerror or store.reason(error)}; the records wait on disk, run `dpar track sync` later"
        ) from None


class Round:
    """One pass over the spools of `results`. Use it as the only writer of the store."""

    def __init__(self, results: Path, index: RunIndex):
        self.results = results
        self.index = index
        self.counts = Counts()
        self._tables: dict[str, tuple[Path, Run]] = {}  # of each table the job that made it last

    @cached_property
    def ledger(self) -> Ledger:
        """The makers of files."""
        return Ledger(self.results)

    def all(self) -> Counts:
        """Carries everything over."""
        from mlflow.exceptions import MlflowException

        for spool in spools(self.results):
            try:
                self._spool(spool)
            except MlflowException as error:
                if error.error_code not in _REFUSED:
                    raise
                self.counts.problems.append(f"{spool}: {str(error).splitlines()[0][:300]}")
        self._rows()
        for kind in self.index.experiments:
            views.install(self.index, kind)
        return self.counts

    def _spool(self, spool: Path) -> None:
        key = spool_key(spool)
        size = (spool / EVENTS).stat().st_size
        known = [writer for name in self.index.keys(f"{key}#") if (writer := self.index.get(name))]
        settled = any(writer.bytes_seen == size and writer.status != "RUNNING" for writer in known)
        if settled and not any({"dpar.tables", _DAMAGED} & writer.tags.keys() for writer in known):
            return
        host = next((event["machine"]["host"] for event in read_events(spool) if event["event"] == "start"), "")
        running = is_running(spool, host)  # asked before the events are read: a job says how it ended, then lets go
        damage: list[str] = []
        runs = replay(read_events(spool, damage))
        damage += faults(spool, runs[-1] if runs else None, running)
        self.counts.problems += damage
        if not runs:
            return
        current, stale = runs[-1], False
        if damage:
            current.tags[_DAMAGED] = f"{len(damage)} lines or files of its record; `dpar track status` names them"
        if current.status == "FINISHED":
            for table in dict.fromkeys(event["table"] for event in current.results):
                before = self._tables.get(table)
                if before is None or (current.ended or 0) >= (before[1].ended or 0):
                    self._tables[table] = spool, current
        if settled:
            return
        if current.status == "RUNNING":
            last_word = (spool / EVENTS).stat().st_mtime
            if running is False:
                current.status, current.ended = "KILLED", int(last_word * 1000)
            stale = running is None and time.time() - last_word > _SILENCE
        self.counts.running += current.status == "RUNNING"
        seen = any(
            w.bytes_seen == size and w.status == current.status and stale == ("dpar.stale" in w.tags) for w in known
        )
        if seen:
            return
        self.counts.jobs += 1
        writers = [self._run(spool, f"{key}#{run.generation}", run, stale and run is current) for run in runs]
        for old, new in pairwise(writers):
            old.tag({"dpar.superseded_by": new.run_id})
            new.tag({"dpar.forked_from": old.run_id})
        for writer in writers:
            writer.done(size)

    def _run(self, spool: Path, key: str, run: Run, stale: bool) -> RunWriter:
        kind = "train" if run.about["rule"].startswith("train_") else "pipeline"
        finished = run.status == "FINISHED" and not run.superseded
        manifest = load_manifest(spool) if finished else None
        tags = job_tags(run) | state_tags(run, stale)
        writer = self.index.get_or_create(kind, key, tags, run)
        if run.status == "RUNNING":
            writer.resume()
        writer.params(run.about["params"])
        models = self._inputs(writer, run, manifest)
        self.counts.points += writer.points(run.points, models[0] if len(models) == 1 else None)
        self.counts.problems += writer.images(run.images, spool)
        if not run.superseded:
            writer.file(spool / CONFIG, "config")
            for figure in run.figures:
                writer.file(spool / figure, "figures")
        if manifest:
            writer.file(spool / MANIFEST, "provenance")
            self._small_outputs(writer, manifest)
            writer.table("outputs", ["file", "bytes", "sha256", "uri"], list(self._listed(manifest)))
            self._model_outputs(writer, manifest, run)
            tags["dpar.outputs"] = str(sum(len(artefact.files) for artefact in manifest.outputs))
        writer.tag(tags | {"mlflow.note.content": self._note(run, manifest)})
        if not stale:
            writer.untag("dpar.stale")
        if run.status != "RUNNING":
            writer.end(run.status, run.ended)
        return writer

    def _inputs(self, writer: RunWriter, run: Run, manifest: JobManifest | None) -> list[str]:
        """Names what the job reads; the ids of the models among it."""
        content = {artefact["sha256"] for artefact in run.about["inputs"]}
        if manifest:
            content |= {sha256 for artefact in manifest.inputs for _, sha256 in files_of(artefact)}
        models = sorted({self.index.models[sha256] for sha256 in content if sha256 in self.index.models})
        groups = grouped(run.about["inputs"])
        datasets = [(group.path, (self.results / group.path).as_uri(), group.sha256) for group in groups]
        if datasets or models:
            writer.inputs(datasets, models)
        return models

    def _small_outputs(self, writer: RunWriter, manifest: JobManifest) -> None:
        """Copies what a person can look at, as long as it still is what the job made."""
        for artefact in manifest.outputs:
            for path, sha256 in files_of(artefact):
                file = self.results / path
                looked_at = file.suffix in _SHOWN and file.exists() and file.stat().st_size <= SMALL
                if looked_at and files.sha256_file(file) == sha256:
                    inside = file.is_relative_to(self.results)
                    folder = Path("outputs") / file.relative_to(self.results).parent if inside else Path("outputs")
                    writer.file(file, folder.as_posix())

    def _listed(self, manifest: JobManifest) -> Iterator[list[Any]]:
        """Every file that a job has made: its path in the results, size, digest and address."""
        for artefact in manifest.outputs:
            for record, (path, sha256) in zip(artefact.files, files_of(artefact), strict=True):
                yield [path, record.bytes, sha256, (self.results / path).as_uri()]

    def _model_outputs(self, writer: RunWriter, manifest: JobManifest, run: Run) -> None:
        step = max((point.step for point in run.points if not point.key.startswith("system/")), default=0)
        for artefact in manifest.outputs:
            for path, sha256 in files_of(artefact):
                if not path.endswith(".safetensors"):
                    continue
                folder = Path(path).parent
                params = {"uri": (self.results / folder).as_uri(), "sha256": sha256, **manifest.params}
                note = (
                    f"Weights in `{folder}` (`uri` and `sha256` below), made by {self._link(manifest)}; not copied. "
                    f"`dpar export {writer.run_id} FOLDER` makes a folder that draws anywhere, with a card of all "
                    "that was measured."
                )
                tags = {
                    "dpar.commit": manifest.commit or "",
                    "dpar.settings": manifest.config,
                    "mlflow.note.content": note,
                }
                model = writer.model(folder.as_posix(), sha256, params, tags, step)
                writer.about_model(run.points, model)
                self.index.models[sha256] = model

    def _link(self, manifest: JobManifest) -> str:
        """A link to the run of the job that wrote `manifest`."""
        keys = self.index.keys(f"{spool_key(manifest.spool)}#")
        writer = self.index.get(keys[-1]) if keys else None
        return f"[{manifest.name}]({run_address(writer)})" if writer else manifest.name

    def _makers(self, artefacts: list[dict[str, Any]]) -> str:
        """Links to the jobs that made what a job reads."""
        found: dict[Path, JobManifest] = {}
        for artefact in artefacts:
            path, sha256 = artefact["path"], artefact["sha256"]
            if maker := self.ledger.producer(path, sha256) or self.ledger.latest(path):
                found[maker.spool] = maker
        links = [self._link(maker) for maker in list(found.values())[:3]]
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        return ", ".join(links) + more if found else "given from outside"

    def _note(self, run: Run, manifest: JobManifest | None) -> str:
        """The run's description: what the job says, what it read and who made that, what it made."""
        lines = [run.note.strip(), ""] if run.note else []
        if run.status == "FAILED" and run.reason:
            lines += ["**Failed**", "", "```", run.reason, "```", ""]
        if run.about["inputs"]:
            groups = grouped(run.about["inputs"])
            made_from = [f"- `{g.path}` (sha256 `{g.sha256[:12]}`): {self._makers(g.members)}" for g in groups]
            lines += ["**Made from**", "", *made_from, ""]
        if manifest:
            made = [f"- `{a.path}` (sha256 `{a.sha256[:12]}`, {a.bytes:,} bytes)" for a in manifest.outputs]
            more = [f"- and {len(made) - MANY} more"] if len(made) > MANY else []
            lines += ["**Makes**", "", *made[:MANY], *more]
        return "\n".join(lines)

    def _rows(self) -> None:
        """Makes the experiment `results` show exactly the rows of the latest version of each table."""
        wanted: set[str] = set()
        for table, (spool, run) in sorted(self._tables.items()):
            rows = [event for event in run.results if event["table"] == table]
            content = [[row[part] for part in ("cell", "params", "metrics", "sources")] for row in rows]
            version = f"results/{table}/{files.digest([spool_key(spool), content])}"
            tags = job_tags(run) | {"dpar.table": table}
            parent_tags = {**tags, "dpar.kind": "table", "mlflow.runName": table}
            parent = self.index.get_or_create("results", version, parent_tags, run)
            for row in rows:
                row_tags = {
                    **tags,
                    "dpar.kind": "cell",
                    "mlflow.runName": row["cell"],
                    "mlflow.parentRunId": parent.run_id,
                }
                child = self.index.get_or_create("results", f"{version}/{row['cell']}", row_tags, run)
                wanted.add(child.key)
                child.tag({"mlflow.parentRunId": parent.run_id})  # another one, if the table's run was deleted
                if child.status == "RUNNING":
                    self._row(child, row, spool, run)
            wanted.add(parent.key)
            if parent.status == "RUNNING":
                note = run.note.strip() or f"{len(rows)} rows, each a run below this one."
                if manifest := load_manifest(spool):
                    note += f"\n\nMade by {self._link(manifest)}."
                    self._small_outputs(parent, manifest)
                parent.tag({"mlflow.note.content": note})
                names = list(dict.fromkeys(key for row in rows for part in ("params", "metrics") for key in row[part]))
                cells = [[row["cell"], *((row["params"] | row["metrics"]).get(key) for key in names)] for row in rows]
                parent.table("rows", ["row", *names], cells)
                parent.end("FINISHED", run.ended)
        for key in self.index.keys("results/"):
            if key not in wanted:
                self.index.delete(key)

    def _row(self, writer: RunWriter, row: Mapping[str, Any], spool: Path, run: Run) -> None:
        shown = {key: readable_text(value) for key, value in row["params"].items()}
        writer.params({"table": row["table"], **shown})
        if row["image"]:
            problem = writer.image(spool / row["image"], "samples", 0, row["t"])
            self.counts.problems += [problem] if problem else []
        makers = {path: self.ledger.latest(path) for path in row["sources"]}
        known = list({by.spool: by for by in makers.values() if by}.values())
        ends = lineage.sources(self.results, self.ledger, known)
        trained = [maker for maker in ends.jobs if maker.rule == "train_model"]
        metrics = {key: float(value) for key, value in row["metrics"].items()}
        if trained:  # all pieces of a training; a row of several trainings says what one of them took
            seeds = {maker.params.get("seed") for maker in trained}
            metrics["cost/training_s"] = sum(map(_seconds, trained)) / len(seeds)
        writer.points([Point(key, value, row["t"], 0) for key, value in metrics.items()])
        images = [made for maker in ends.jobs if maker.rule == "index_images" for made in maker.outputs]
        weights = {sha256 for maker in trained for made in maker.outputs for _, sha256 in files_of(made)}
        weights -= {sha256 for maker in trained for read in maker.inputs for _, sha256 in files_of(read)}
        writer.inputs(
            [(made.path, (self.results / made.path).as_uri(), made.sha256) for made in images],
            sorted(self.index.models[sha256] for sha256 in weights if sha256 in self.index.models),
        )
        lines = [f"- {line}" for line in ends.facts()]
        lines += [f"- training: {self._link(maker)}" for maker in trained]
        lines += ["", "**Measured in**", ""]
        lines += [f"- `{path}`: {self._link(by) if by else 'given from outside'}" for path, by in makers.items()]
        lines += ["", f"`dpar lineage {row['table']}:{row['cell']}` prints every job between."]
        keys = {path: self.index.keys(f"{spool_key(by.spool)}#") for path, by in makers.items() if by}
        stage_runs = {path: found.run_id for path, k in keys.items() if k and (found := self.index.get(k[-1]))}
        note = "\n".join(["**Made from**", "", *lines])
        writer.tag({"mlflow.note.content": note, "mlflow.dpar.stage_runs": json.dumps(stage_runs)})
        writer.end("FINISHED", run.ended)


def _seconds(maker: JobManifest) -> float:
    """Duration of all attempts of a job."""
    runs = replay(read_events(maker.spool))[-1:]
    values = [point.value for run in runs for point in run.points if point.key == "time/wall_s"]
    return values[-1] if values else 0.0


def run_address(writer: RunWriter) -> str:
    """The run's page, relative to the dashboard's address."""
    return f"#/experiments/{writer.experiment_id}/runs/{writer.run_id}?workflowType=machine_learning"
