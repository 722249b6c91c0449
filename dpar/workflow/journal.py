"""The journal of a run, `tracking/run.jsonl`: what Snakemake began, finished and failed, for those who watch it."""

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from dpar.errors import shown
from dpar.train.progress import duration

NAME = "run.jsonl"
START = 5.0  # seconds of a job in addition to its work, most of them imports; used until jobs have shown it
LAST_LINES = 6  # of the log of a job that failed
LONGEST_LINE = 160
WARNING = "warning: "  # begins a line of a log that whoever runs the job should read


def journal_path(results: Path) -> Path:
    """The journal of the last run into these results."""
    return results / "tracking" / NAME


def write(results: Path, event: str, *, anew: bool = False, **values: Any) -> None:
    """Adds an event, or begins the journal `anew` with it; a disk that is full costs the line and no more."""
    path = journal_path(results)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w" if anew else "a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "time": time.time(), **values}) + "\n")


def begin(results: Path, jobs: Mapping[str, int], seconds: Mapping[str, float] | None = None) -> None:
    """Begins the journal of a run of this process.

    Args:
        jobs: how many there are of each rule.
        seconds: that jobs are thought to take, by their names, as far as that is known.
    """
    write(results, "planned", anew=True, pid=os.getpid(), jobs=dict(jobs), seconds=dict(seconds or {}))


class JournalHandler(logging.Handler):
    """Writes Snakemake's events as its logger is told of them; jobs that make nothing only gather others."""

    def __init__(self, results: Path):
        super().__init__()
        self._results = results
        self._gathering: set[int] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """One event, if it is about a job."""
        event = _kind_of(record)
        if event == "job_info" and not record.output:  # type: ignore[attr-defined]
            self._gathering.add(record.jobid)  # type: ignore[attr-defined]
        elif event == "job_info":
            values = {"job": record.jobid, "name": job_name(record.rule_name, record.wildcards), "log": [*record.log]}  # type: ignore[attr-defined]
            write(self._results, "started", **values)
        elif event == "job_finished" and record.job_id not in self._gathering:  # type: ignore[attr-defined]
            write(self._results, "finished", job=record.job_id)  # type: ignore[attr-defined]
        elif event == "job_error":
            write(self._results, "failed", job=record.jobid, name=record.rule_name, log=[*record.log])  # type: ignore[attr-defined]


class FirstEvent(logging.Handler):
    """Calls a function when Snakemake's logger is first told of an event of a kind."""

    def __init__(self, kind: str, call: Callable[[], object]):
        super().__init__()
        self._kind, self._call = kind, call

    def emit(self, record: logging.LogRecord) -> None:
        """Calls it, once."""
        if self._kind and _kind_of(record) == self._kind:
            self._kind = ""
            self._call()


def _kind_of(record: logging.LogRecord) -> str:
    """The kind of event that Snakemake's logger is told of, such as `job_info`; empty where it is none."""
    return str(getattr(record, "event", "") or "").rpartition(".")[2].lower()


def job_name(rule: str, wildcards: Mapping[str, str]) -> str:
    """A rule with what tells its job apart, such as `train_model dpar/step400`."""
    return f"{rule} {'/'.join(map(str, wildcards.values()))}".strip()


@dataclass
class Watched:
    """A job as the journal knows it; `seconds` of one that is finished."""

    name: str
    log: list[str]
    since: float
    seconds: float = 0.0


@dataclass
class RunState:
    """A run, as far as its journal goes.

    Attributes:
        began: when, seconds since 1970.
        last: when the last event was.
        process: the process of the run.
        planned: how many jobs there are of each rule.
        running: jobs by number.
        failed: those that failed.
        finished: those that are finished, in their order.
        seconds: that jobs are thought to take, by name.
        ended: how it ended, if it did: `done` or `failed`.
        refused: why nothing was started.
        budget: hours within which it would have been started.
    """

    began: float = 0.0
    last: float = 0.0
    process: int = 0
    planned: dict[str, int] = field(default_factory=dict)
    running: dict[int, Watched] = field(default_factory=dict)
    failed: list[Watched] = field(default_factory=list)
    finished: list[Watched] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    ended: str | None = None
    refused: str | None = None
    budget: int | None = None

    @property
    def total(self) -> int:
        """The number of jobs."""
        return sum(self.planned.values())

    @property
    def done(self) -> int:
        """The number of those that are finished."""
        return len(self.finished)

    def left(self, now: float) -> float | None:
        """Seconds to the end; None before a job is finished.

        Each job has a start and the work that it was thought to be. Jobs of little work show how long a start takes, in
        the median, since one may have been longer than thought; the others how fast work is done.

        Args:
            now: seconds since 1970.
        """
        spent = sum(job.seconds for job in self.finished)
        if not spent or now <= self.began:
            return None
        short = [job.seconds for job in self.finished if self._work(job) < START]
        start = median(short) if short else START
        long = [job for job in self.finished if self._work(job) >= START]
        pace = sum(job.seconds for job in long) / sum(start + self._work(job) for job in long) if long else 1.0
        ahead = sum(self.seconds.values()) - sum(map(self._work, self.finished))
        begun = [(start + pace * self._work(job), now - job.since) for job in self.running.values()]
        seconds = start * (self.total - self.done) + pace * max(0.0, ahead) - sum(map(min, begun))
        abreast = max(1.0, (spent + sum(busy for _, busy in begun)) / (now - self.began))
        return max(0.0, seconds / abreast)

    def _work(self, job: Watched) -> float:
        return self.seconds.get(job.name, 0.0)

    @property
    def alive(self) -> bool:
        """Whether the run is going on."""
        return self.ended is None and self.refused is None and psutil.pid_exists(self.process)


def read(results: Path, since: float = 0.0) -> RunState | None:
    """The last run into these results; None where none left a journal, or none that began `since` then."""
    try:
        lines = journal_path(results).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    state = RunState()
    for line in lines:
        with suppress(ValueError, KeyError, TypeError):  # a line that is half-written
            _take(state, json.loads(line))
    return state if state.began >= since else None


def _take(state: RunState, event: dict[str, Any]) -> None:
    kind, state.last = event["event"], event["time"]
    if kind == "planned":
        state.began, state.process, state.planned = event["time"], event["pid"], event["jobs"]
        state.seconds = event.get("seconds", {})
    elif kind == "refused":
        state.began, state.refused, state.budget = event["time"], event["text"], event.get("budget")
    elif kind == "started":
        state.running[event["job"]] = Watched(event["name"], event["log"], event["time"])
    elif kind == "finished":
        job = state.running.pop(event["job"], None) or Watched("", [], event["time"])
        job.seconds = event["time"] - job.since
        state.finished.append(job)
    elif kind == "failed":
        known = state.running.pop(event["job"], None)
        state.failed.append(known or Watched(event["name"], event["log"], event["time"]))
    elif kind == "ended":
        state.ended = event["how"]


def lines(state: RunState, directory: Path, now: float | None = None) -> Iterator[str]:
    """The state in words: one line in all, one per running job with its last word, and the failed with their logs.

    Args:
        directory: from which the logs' paths count.
        now: seconds since 1970; by default the present.
    """
    now = time.time() if now is None else now
    if state.refused is not None:
        yield f"nothing was started: {state.refused}"
        return
    how = "running" if state.alive else state.ended or "interrupted"
    left = f", about {duration(seconds)} left" if state.alive and (seconds := state.left(now)) is not None else ""
    spent = duration((now if state.alive else state.last) - state.began)
    yield f"{how}: {state.done} of {state.total} jobs, in {spent}{left}"
    yield from (f"  {going_on(job, directory, now)}" for job in state.running.values() if state.alive)
    for job in state.failed:
        yield f"  failed: {job.name}, log {', '.join(job.log)}"


def going_on(job: Watched, directory: Path, now: float) -> str:
    """A running job with its last word."""
    word = last_line(directory, job.log)
    return f"{job.name} ({duration(now - job.since)}){f': {word}' if word else ''}"


def plain_lines(before: RunState, state: RunState, directory: Path, now: float) -> Iterator[str]:
    """Lines on jobs that ended since the state before: k of n, the job, its last word, which has its figure of merit.

    Args:
        directory: from which the logs' paths count.
        now: seconds since 1970.
    """
    seconds = state.left(now)
    left = "" if seconds is None or state.done >= state.total else f"; about {duration(seconds)} left"
    for number, job in enumerate(state.finished[before.done :], before.done + 1):
        word = last_line(directory, job.log)
        yield f"{number} of {state.total}  {job.name}{f': {word}' if word else ''} ({duration(job.seconds)}){left}"
    yield from (f"failed  {job.name}, log {', '.join(job.log)}" for job in state.failed[len(before.failed) :])


def warnings(jobs: Iterable[Watched], directory: Path, known: set[str]) -> Iterator[str]:
    """The warnings in the logs of jobs, each once, with the first job that gave it.

    Args:
        directory: from which the logs' paths count.
        known: warnings that are left out; these are added.
    """
    for job in jobs:
        for path in job.log:
            with suppress(OSError), open(directory / path, encoding="utf-8", errors="replace") as file:
                for words in (shown(x.removeprefix(WARNING).strip()) for x in file if x.startswith(WARNING)):
                    if words not in known:
                        known.add(words)
                        yield f"{WARNING}{job.name}: {words}"


def failures(state: RunState, directory: Path) -> Iterator[str]:
    """The last words of the jobs that failed, each once."""
    for job in {job.name: job for job in state.failed}.values():
        yield f"{job.name} failed; the end of {', '.join(job.log)}:"
        yield from (f"  {line}" for line in _tail(directory, job.log, LAST_LINES))


def last_line(directory: Path, log: list[str]) -> str:
    """The last line of a log that is not of a table or its notes, cut to what a screen has room for."""
    found = [line for line in _tail(directory, log, LAST_LINES) if not line.startswith(("|", "- "))]
    return found[-1][:LONGEST_LINE] if found else ""


def _tail(directory: Path, log: list[str], count: int) -> list[str]:
    for path in log:
        with suppress(OSError), open(directory / path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 2**14))
            text = file.read().decode("utf-8", errors="replace").replace("\r", "\n")
            return [shown(line) for line in text.splitlines() if line.strip()][-count:]
    return []
