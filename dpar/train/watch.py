"""A watchdog thread that ends this rank when some rank has hung, and names it; a collective would wait in silence.

Each rank publishes where its main thread is. The ranks that are the furthest behind are those that all others wait for:
when none of them has moved for as long as such a place may take, this rank ends, and the launcher stops the rest.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace

from torch._C._distributed_c10d import Store

from dpar.train.interruption import REQUEUE, Interruption

PATIENCE_S = 300.0
"""Seconds in one place, such as the forward pass of a micro-batch."""
LONG_S = 3600.0
"""Seconds in a place where one rank may work alone: reading data at the start, saving, drawing, compiling."""
ASKED_S = 60.0
"""Seconds in an ordinary place after a signal that asks for an end, when schedulers do not wait for long."""
_EVERY_S = 1.0


@dataclass(frozen=True)
class Beat:
    """Progress of a rank.

    Attributes:
        count: of the places so far; all ranks pass the same ones in the same order.
        place: its name.
        long: whether it may take long.
        waiting: whether this rank has done its part there, and waits for the others.
        ticks: signs of life in this place.
        asked: whether a signal has asked for an end.
    """

    count: int = 0
    place: str = "the start"
    long: bool = True
    waiting: bool = False
    ticks: int = 0
    asked: bool = False


class Watch:
    """This rank's view of all ranks.

    Args:
        store: of this watch alone, reached by all ranks, over a connection of its own.
    """

    def __init__(self, store: Store, rank: int, size: int):
        self._store, self._rank, self._size = store, rank, size
        self._beat = Beat()
        self._saved = False
        self._every = max(_EVERY_S, size / 32)  # seconds; each rank reads the entries of all
        now = time.monotonic()
        self._seen = {other: (Beat(-1), now) for other in range(size)}  # and since when it is there
        self._heard: dict[int, tuple[str, float]] = dict.fromkeys(range(size), ("", now))  # its last message, and when
        self._published = 0
        self._over = threading.Event()
        self._signals, self._wakeup = socket.socketpair()
        for end in (self._signals, self._wakeup):
            end.setblocking(False)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begins to watch; signals are noticed while the main thread waits for other ranks in foreign code."""
        self._publish()
        self._fd = signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        self._thread.start()

    def stop(self) -> None:
        """Ends the watch of this rank; the others no longer wait for it."""
        self._over.set()
        self._thread.join()
        signal.set_wakeup_fd(self._fd)
        self._beat = replace(self._beat, count=sys.maxsize)
        with suppress(RuntimeError):
            self._publish()

    def at(self, place: str, *, long: bool = False) -> None:
        """Says that this rank comes to `place`; all ranks must."""
        self._beat = Beat(self._beat.count + 1, place, long)

    def tick(self) -> None:
        """Says that this rank is still at work where it is."""
        self._beat = replace(self._beat, ticks=self._beat.ticks + 1)

    def waits(self, waiting: bool) -> None:
        """Says whether this rank waits for the others."""
        self._beat = replace(self._beat, waiting=waiting)

    def saved(self) -> None:
        """Signals that a restart would continue from a later state than this start did."""
        self._saved = True

    def _publish(self) -> None:
        self._published += 1  # as long as this process is not frozen
        self._store.set(str(self._rank), json.dumps([vars(self._beat), self._published]))

    def _run(self) -> None:
        asked_since: float | None = None
        before = time.monotonic()
        with suppress(RuntimeError):  # the store has gone, and so has the launcher
            while not self._over.wait(self._every):
                now = time.monotonic()
                if now - before > 10 * self._every:  # this process was stopped itself
                    self._seen = {rank: (beat, now) for rank, (beat, _) in self._seen.items()}
                    self._heard = {rank: (text, now) for rank, (text, _) in self._heard.items()}
                before = now
                self._beat = replace(self._beat, asked=self._beat.asked or self._was_asked())
                self._publish()
                beats = self._look(now)
                if asked_since is None and any(beat.asked for beat in beats.values()):
                    asked_since = now
                if hung := self._hung(now, asked_since):
                    self._give_up(hung, asked=asked_since is not None)

    def _was_asked(self) -> bool:
        with suppress(BlockingIOError):
            return any(number in Interruption.SIGNALS for number in self._signals.recv(4096))
        return False

    def _look(self, now: float) -> dict[int, Beat]:
        """The beat of each rank, -1 for one that has not started, with the time of its last change."""
        for rank in range(self._size):
            if self._store.check([str(rank)]):
                text = self._store.get(str(rank)).decode()
                if self._heard[rank][0] != text:
                    self._heard[rank] = text, now
                beat = Beat(**json.loads(text)[0])
                if self._seen[rank][0] != beat:
                    self._seen[rank] = beat, now
        return {rank: beat for rank, (beat, _) in self._seen.items()}

    def _hung(self, now: float, asked_since: float | None) -> list[int]:
        """The ranks that the others have waited for too long: frozen, or stuck at their place."""
        patience = PATIENCE_S if asked_since is None else ASKED_S
        running = [rank for rank, (beat, _) in self._seen.items() if 0 <= beat.count < sys.maxsize]
        if frozen := [rank for rank in running if now - max(self._heard[rank][1], asked_since or 0) > patience]:
            return frozen
        least = min(beat.count for beat, _ in self._seen.values())
        behind = {rank: seen for rank, seen in self._seen.items() if seen[0].count == least}
        for beat, since in behind.values():
            patience = LONG_S if beat.long else PATIENCE_S
            asked = asked_since is not None and not (beat.long and beat.count > 0)
            if now - since <= patience and not (asked and now - max(since, asked_since or 0) > ASKED_S):
                return []
        return [rank for rank, (beat, _) in behind.items() if not beat.waiting] or list(behind)

    def _give_up(self, hung: list[int], *, asked: bool) -> None:
        """Ends this process; one rank that did not hang prints the message."""
        again = asked or self._saved
        speakers = [rank for rank in self._seen if rank not in hung] or hung
        if self._rank == min(speakers):
            names = ", ".join(map(str, hung))
            place = self._seen[hung[0]][0].place
            print(
                f"error: rank {names} of {self._size} did not get past {place}: it hangs, and the others would wait "
                "for ever. All are ended; the same command goes on from the last checkpoint"
                + (
                    f" (exit status {REQUEUE})"
                    if again
                    else ". None was saved since the start, so look at that rank first"
                ),
                file=sys.stderr,
                flush=True,
            )
        else:
            time.sleep(5 * self._every)  # the launcher stops all when the first ends: let that be the one that speaks
        os._exit(REQUEUE if again else 1)
