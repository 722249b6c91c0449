"""The view of a run while it goes on: compact on a terminal, elsewhere a line per finished job."""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dpar.workflow import journal

STILL = 600.0  # seconds after which a run without a terminal says what it works on
# Lines of Snakemake and of the Snakefile that a person wants to see.
_SAID = (
    "smoke: ", "this run", "  trains   ", "  takes    ", "  again    ", "  results/",
    "not checked: ", "tracking: ", "Nothing to",
)  # fmt: skip


@contextmanager
def watching(results: Path, log: Path) -> Iterator[None]:
    """Shows on standard error how the run in the block goes on, all of which is said in `log`.

    Args:
        results: of the run, with its journal.
    """
    view = Screen(results, log) if sys.stderr.isatty() else Lines(results, log)
    ended = threading.Event()

    def look() -> None:
        # signals are for the thread that waits for the run: one that this thread takes would not reach it
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while not ended.wait(1):
            view.refresh()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        view.close()


class _View:
    """The common part of the views: the journal of this run, and the lines of its log that people want to see."""

    def __init__(self, results: Path, log: Path):
        self.results, self.directory, self._log, self._began = results, results.parent.parent, log, time.time()
        self._read = 0  # bytes of the log, those of `_said`
        self._said: list[str] = []
        self._heard = 0  # finished jobs, whose warnings these are
        self._warnings: set[str] = set()

    def state(self) -> journal.RunState | None:
        """The run, once its jobs are known."""
        state = journal.read(self.results, self._began)
        return state if state and state.refused is None else None

    def said(self) -> list[str]:
        """The lines before its first job, and those of its end."""
        with open(self._log, "rb") as file:
            file.seek(self._read)
            whole, end, _ = file.read().rpartition(b"\n")
        self._read += len(whole + end)
        lines = whole.decode("utf-8", errors="replace").splitlines()
        self._said += [line for line in lines if line.startswith(_SAID)]
        return self._said

    def warned(self, state: journal.RunState) -> list[str]:
        """The warnings of jobs that finished since the last call, but for those that another job gave before."""
        jobs, self._heard = state.finished[self._heard :], len(state.finished)
        return [*journal.warnings(jobs, self.directory, self._warnings)]


class Screen(_View):
    """A terminal, a part of which is drawn anew each second."""

    def __init__(self, results: Path, log: Path):
        from rich.console import Console
        from rich.live import Live

        super().__init__(results, log)
        self._live = Live(
            console=Console(stderr=True),
            auto_refresh=False,
            transient=True,
            redirect_stderr=False,
            redirect_stdout=False,
        )
        self._live.start()

    def refresh(self) -> None:
        """Draws the state of now."""
        from rich.text import Text

        state = self.state()
        for line in self.warned(state) if state else ():
            self._live.console.print(Text(line))  # above what is drawn anew, and it stays
        found = journal.lines(state, self.directory) if state else ["looking at what is to be done"]
        self._live.update(Text("\n".join([*self.said(), *found]), overflow="ellipsis", no_wrap=True), refresh=True)

    def close(self) -> None:
        """Takes it off the screen."""
        self._live.stop()


class Lines(_View):
    """A log, or a pipe, with a line for whatever ends."""

    def __init__(self, results: Path, log: Path):
        super().__init__(results, log)
        self._shown, self._before, self._spoken = 0, journal.RunState(), time.time()

    def refresh(self) -> None:
        """Says what is new; what is worked on, where nothing was for minutes."""
        now, lines = time.time(), self.said()
        found: list[Any] = lines[self._shown :]
        self._shown = len(lines)
        if state := self.state():
            found += [*journal.plain_lines(self._before, state, self.directory, now), *self.warned(state)]
            self._before = state
            if not found and now - self._spoken >= STILL:
                found = [f"at work  {journal.going_on(job, self.directory, now)}" for job in state.running.values()]
        if found:
            self._spoken = now
            print("\n".join(found), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Says what came last."""
        self.refresh()
