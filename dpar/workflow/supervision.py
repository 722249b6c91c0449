"""A command that is waited for to its very end, and asked to end, with all that it started, when this process is."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import psutil

STOPPING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
"""Signals that ask this process to stop; one that is ignored, as SIGHUP is under `nohup`, stays so."""

SAME_REQUEST_S = 1.0
"""Seconds in which signals are one request: `timeout`, systemd and a terminal that closes send several at once."""

_FROM_KERNEL = 0x80  # si_code of a key on the terminal


class Supervised:
    """A command and its children.

    The first request to stop becomes what Ctrl-C is to the command itself, and SIGTERM to what it has started; a
    second one kills all of them.
    """

    def __init__(self, command: Sequence[str], **popen: Any):
        """Starts it.

        Args:
            command: which, like what it starts, stays in this process's group.
            popen: for `subprocess.Popen`.
        """
        self.stopped_by: signal.Signals | None = None
        self._since = 0.0
        self._told: set[psutil.Process] = set()
        self._heeded = {number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN}
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._heeded)
        self._process = subprocess.Popen(command, preexec_fn=self._in_child, **popen)

    def _in_child(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it is told by this process
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def wait(self) -> int:
        """The exit status, when neither the command nor any child that was asked to end is left."""
        try:
            while self._process.poll() is None or any(_lives(process) for process in self._told):
                if (found := signal.sigtimedwait(self._heeded, 0.2)) is not None:
                    self._stop(signal.Signals(found.si_signo), by_key=found.si_code == _FROM_KERNEL)
                elif self.stopped_by is not None:
                    self._tell(late=True)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        return self._process.returncode

    def _stop(self, number: signal.Signals, *, by_key: bool) -> None:
        if self.stopped_by is None:
            self.stopped_by, self._since = number, time.monotonic()
            if by_key and number == signal.SIGINT:  # which the terminal has sent to all of the group
                self._told.update(self._children())
            else:
                self._tell(late=False)
                self._process.send_signal(signal.SIGINT)
        elif time.monotonic() - self._since >= SAME_REQUEST_S:
            for process in {*self._told, *self._children(everywhere=True)}:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            self._process.kill()

    def _tell(self, *, late: bool) -> None:
        """Asks children to end that have not been asked.

        Args:
            late: only those of children, which were being started; the command has its own at its end.
        """
        for process in set(self._children()) - self._told:
            with suppress(psutil.NoSuchProcess):
                if not (late and process.ppid() == self._process.pid):
                    process.terminate()
                    self._told.add(process)

    def _children(self, *, everywhere: bool = False) -> list[psutil.Process]:
        """All that came of the command, in this process's group or everywhere."""
        try:
            found = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return [process for process in found if everywhere or _group(process) == os.getpgrp()]


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _group(process: psutil.Process) -> int | None:
    with suppress(ProcessLookupError):
        return os.getpgid(process.pid)
    return None
