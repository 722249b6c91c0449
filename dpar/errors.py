"""The error that is meant for the person at the keyboard, and how a command shows it."""

import io
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress


class InputError(ValueError):
    """Something the user gave cannot be used: what was found, what was expected, where, the next step."""


def shown(name: str) -> str:
    """A name as a terminal may show it: one line, without bytes that are no text and characters that steer."""
    return name if name.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


class _Lasting(io.FileIO):
    """Somebody else's descriptor to write to; what is said after its reader has gone is dropped."""

    def write(self, data, /) -> int:  # type: ignore[override]  # a buffer of any kind
        with suppress(BrokenPipeError):
            return super().write(data)
        return memoryview(data).nbytes


def outlive_readers() -> None:
    """Lets this process work on when its standard output or error has no reader any more, or lacks a letter.

    Readers go (`| head`, a killed `tee`), and streams in ASCII or ISO-8859-1 have few letters.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or stream is not getattr(sys, f"__{name}__"):
            continue  # closed from the start, or in other hands
        stream.flush()
        lasting = io.TextIOWrapper(
            io.BufferedWriter(_Lasting(stream.fileno(), "w", closefd=False)),
            encoding=stream.encoding,
            errors="backslashreplace",  # a terminal without the letter shows its number
            line_buffering=stream.line_buffering or stream.write_through,  # the latter: PYTHONUNBUFFERED
        )
        setattr(sys, name, lasting)


def run_command(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> int:
    """Exit status of `main(argv)`; an `InputError` or a full disk becomes one line on standard error.

    A reader of its output that has gone changes nothing: the work is done to its end, and its status is told.

    Returns:
        0 on success, 2 for an `InputError`, 3 for an operating-system error (disk full, no permission).
    """
    outlive_readers()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("dpar").setLevel(logging.INFO)
    try:
        main(argv)
        sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno is None:
            raise
        place = f" ({error.filename})" if error.filename else ""
        print(f"error: {error.strerror or error}{place}; nothing half-written is left behind", file=sys.stderr)
        return 3
    return 0
