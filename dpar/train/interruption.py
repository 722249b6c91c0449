"""Signals that ask a training to stop, handled between two steps."""

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

REQUEUE = os.EX_TEMPFAIL  # 75: saved and stopped on request; the same command goes on from there


def heeding(handler: Callable[[int, FrameType | None], None]) -> dict[signal.Signals, Any]:
    """Installs `handler` for the signals of an `Interruption`; returns the previous handlers."""
    numbers = Interruption.SIGNALS
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        numbers = [number for number in numbers if number != signal.SIGHUP]
    return {number: signal.signal(number, handler) for number in numbers}


class Interruption:
    """Within its block, these signals only set `received`; a second Ctrl-C stops at once.

    Where SIGHUP is ignored, as under `nohup`, it stays so.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def __enter__(self) -> "Interruption":
        self._before = heeding(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
