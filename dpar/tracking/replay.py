"""Runs from a job's events: one, or several where a later attempt took another path. No files, no MLflow."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]


class Point(NamedTuple):
    """One value of one curve; `timestamp` in milliseconds since 1970."""

    key: str
    value: float
    timestamp: int
    step: int


class StepImage(NamedTuple):
    """One image of a stepped series and its file in the spool."""

    key: str
    file: str
    timestamp: int
    step: int


@dataclass
class Run:
    """All that is known about one run.

    `points` and `images` only ever grow as events are added, which is what lets a reader go on where it stopped.
    """

    generation: int
    about: dict[str, Any]
    started: int
    ended: int | None = None
    status: Status = "RUNNING"
    reason: str | None = None
    attempts: int = 1
    superseded: bool = False
    points: list[Point] = field(default_factory=list)
    images: list[StepImage] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    note: str = ""
    figures: list[str] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)


def replay(events: Iterable[dict[str, Any]]) -> list[Run]:
    """The runs that `events`, the lines of a spool in order, describe; the last is the current one.

    Values of a step show up when a commit covers the step or the attempt ends well: what a killed attempt did after
    its last commit is done again by the next one. Once the next one has shown where it goes on, the values before
    that point are shown too. An attempt that goes on from an earlier step than what is already visible cannot take
    anything back, so it becomes a new run that shares the values before that step.
    """
    replayer = _Replayer()
    for event in events:
        replayer.add(event)
    return replayer.runs


class _Replayer:
    def __init__(self) -> None:
        self.runs: list[Run] = []
        self._hidden: list[Point | StepImage] = []  # of the current attempt, after its last commit
        self._tail: list[Point | StepImage] = []  # of the attempt before
        self._resumed_at: int | None = None  # the first step the current attempt speaks of
        self._committed = -1
        self._visible: set[tuple[type, str, int]] = set()
        self._frontier = -1  # the last visible step
        self._singles: dict[str, str] = {}  # the last word on each number for the whole run
        self._samples = 0  # of the machine's load
        self._before: tuple[Any, ...] = ()
        self._attempt_started = 0
        self._seconds = 0.0  # of all ended attempts of the current run
        self._last = 0

    @property
    def run(self) -> Run:
        return self.runs[-1]

    def add(self, event: dict[str, Any]) -> None:
        kind, t = event["event"], event["t"]
        if kind == "start":
            self._start(event)
        elif not self.runs:  # the line of the start was lost
            return
        elif kind == "metrics":
            points = [Point(key, float(value), t, event["step"]) for key, value in event["values"].items()]
            self._stepped(points, event["step"])
        elif kind == "image":
            self._stepped([StepImage(event["key"], event["file"], t, event["step"])], event["step"])
        elif kind == "commit":
            self._resume(event["step"] + 1)
            self._committed = event["step"]
            self._show(item for item in self._hidden if item.step <= event["step"])
            self._hidden = [item for item in self._hidden if item.step > event["step"]]
        elif kind == "summary":
            for key, value in event["values"].items():
                self._single(key, float(value), t)
        elif kind == "system":
            self._samples += 1
            self.run.points += [Point(key, float(value), t, self._samples) for key, value in event["values"].items()]
        elif kind == "tags":
            self.run.tags |= event["tags"]
        elif kind == "note":
            self.run.note = event["text"]
        elif kind == "figure":
            self.run.figures += [event["file"]] if event["file"] not in self.run.figures else []
        elif kind == "result":
            self.run.results.append(event)
        elif kind == "end":
            self._end(event)
        self._last = t

    def _start(self, event: dict[str, Any]) -> None:
        about = {key: value for key, value in event.items() if key not in ("t", "event")}
        if not self.runs:
            self.runs.append(Run(0, about, event["t"]))
        else:
            run = self.run
            if run.status == "RUNNING":  # the attempt before never said how it ended
                self._seconds += (self._last - self._attempt_started) / 1000
                run.status, run.ended = "KILLED", self._last
            self._before = (run.about, run.ended, run.status, run.reason, run.attempts)
            run.about, run.ended, run.status, run.reason = about, None, "RUNNING", None
            run.attempts += 1
            run.results = []
        self._tail = [*self._tail, *self._hidden]
        self._hidden, self._resumed_at, self._committed = [], None, -1
        self._attempt_started = event["t"]

    def _resume(self, step: int) -> None:
        """The current attempt goes on at `step`: settles what became of the attempt before."""
        if self._resumed_at is not None:
            return
        self._resumed_at = step
        if step < self._frontier:
            self._fork(step)
        else:
            self._show(item for item in self._tail if item.step < step)
        self._tail = []

    def _fork(self, step: int) -> None:
        old = self.run
        new = Run(old.generation + 1, old.about, self._attempt_started, tags=dict(old.tags), note=old.note)
        old.about, old.ended, old.status, old.reason, old.attempts = self._before
        old.superseded = True
        stepped = self._visible
        self.runs.append(new)
        self._visible, self._frontier, self._seconds, self._singles, self._samples = set(), -1, 0.0, {}, 0
        self._show(p for p in old.points if (Point, p.key, p.step) in stepped and p.step < step)
        self._show(image for image in old.images if image.step < step)

    def _stepped(self, items: list, step: int) -> None:
        self._resume(step)
        if step <= self._committed:
            self._show(items)
        else:
            self._hidden += items

    def _show(self, items: Iterable[Point | StepImage]) -> None:
        for item in list(items):
            identity = (type(item), item.key, item.step)
            if identity in self._visible:
                continue
            self._visible.add(identity)
            self._frontier = max(self._frontier, item.step)
            if isinstance(item, Point):
                self.run.points.append(item)
            else:
                self.run.images.append(item)

    def _single(self, key: str, value: float, timestamp: int) -> None:
        """A number for the whole run; one that has not changed since is not said again."""
        if self._singles.get(key) != repr(value):
            self._singles[key] = repr(value)
            self.run.points.append(Point(key, value, timestamp, 0))

    def _end(self, event: dict[str, Any]) -> None:
        self.run.status, self.run.reason, self.run.ended = event["status"], event.get("reason"), event["t"]
        self._seconds += (event["t"] - self._attempt_started) / 1000
        if event["status"] == "FINISHED":
            self._show([*(self._tail if self._resumed_at is None else []), *self._hidden])
            self._hidden, self._tail = [], []
            self._single("time/wall_s", round(self._seconds, 3), event["t"])
