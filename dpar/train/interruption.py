"""Signals that ask a training to stop: noted when they come, obeyed between two steps."""

import os
import signal
from types import FrameType

REQUEUE = os.EX_TEMPFAIL  # 75: saved and stopped on request; the same command goes on from there


class Interruption:
    """Within its block, SIGTERM, SIGINT and SIGUSR1 only set `received`; a second Ctrl-C stops at once."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def __enter__(self) -> "Interruption":
        self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
