"""An end to waiting, whoever is waited for."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dpar.errors import InputError


class _Late(BaseException):
    """Not an `Exception`, which a library might catch."""


@contextmanager
def deadline(seconds: float, refusal: str) -> Iterator[None]:
    """Breaks off what the block waits for after `seconds`. Only in the main thread, elsewhere there is no limit.

    Raises:
        InputError: `refusal`; the time was over.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(number: int, _: Any) -> None:
        raise _Late

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again, where a destructor swallows it
    try:
        yield
    except _Late:
        raise InputError(refusal) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
