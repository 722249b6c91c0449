"""Errors for the user, and how a command shows them."""

import difflib
import errno
import io
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

_ADDRESS = re.compile(r"(\w://[^:/@\s]*):(\S*)@")
_QUERY = re.compile(r"([?&](?:\w*pass\w*|\w*token|\w*secret)=)([^&\s'\"]+)", re.IGNORECASE)
_SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD", "MYSQL_PWD")

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_TEXT = re.compile(
    r"No space left on device|Disk quota exceeded|database or disk is full|\d+ requested and \d+ written"
    r"|\(os error (?:28|122)\)"
)


class InputError(ValueError):
    """Unusable input: found and expected values, the place, and the next step."""


def shown(name: str) -> str:
    """A name as a terminal may show it: one line, without bytes that are no text and control characters."""
    return name if name.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for a name that is almost a known one, else nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def redacted(text: str, given: Iterable[str] = ()) -> str:
    """`text` without passwords: those of addresses in it, and anywhere those that were given to this process.

    Args:
        given: addresses, in addition to those in the environment and on the command line.
    """
    known = {form for secret in _secrets(given) for form in (secret, unquote(secret)) if len(form) > 3}
    text = _QUERY.sub(r"\1...", _ADDRESS.sub(r"\1:...@", text))
    for secret in sorted(known, key=len, reverse=True):
        text = text.replace(secret, "...")
    return text


def _secrets(given: Iterable[str]) -> Iterator[str]:
    for value in (*given, *sys.argv, *os.environ.values()):
        for pattern in (_ADDRESS, _QUERY):
            yield from (found[2] for found in pattern.finditer(value))
    yield from (os.environ[name] for name in _SECRETS if name in os.environ)


class _PipeTolerantFile(io.FileIO):
    """A file over an open descriptor of another owner; what is written after its reader has gone is dropped."""

    def write(self, data, /) -> int:  # type: ignore[override]  # a buffer of any kind
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):  # the latter of a terminal that was closed
                raise
        return memoryview(data).nbytes


def ignore_broken_pipe() -> None:
    """Keeps this process running when standard output or error has lost its reader, or cannot encode a character.

    Readers go (`| head`, a killed `tee`), and streams in ASCII or ISO-8859-1 encode few characters.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or stream is not getattr(sys, f"__{name}__"):
            continue  # closed from the start, or in other hands
        stream.flush()
        lasting = io.TextIOWrapper(
            io.BufferedWriter(_PipeTolerantFile(stream.fileno(), "w", closefd=False)),
            encoding=stream.encoding,
            errors="backslashreplace",  # a terminal without the character shows its number
            line_buffering=stream.line_buffering or stream.write_through,  # the latter: PYTHONUNBUFFERED
        )
        setattr(sys, name, lasting)


def run_command(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> int:
    """Exit status of `main(argv)`; an `InputError` or a full disk becomes one line on standard error.

    A closed output (broken pipe) changes nothing: the work is finished and its status returned.

    Returns:
        0 on success, 2 for an `InputError`, 3 for an operating-system error (disk full, no permission), 130 for Ctrl-C.
    """
    ignore_broken_pipe()
    sys.excepthook = _show_bug
    logging.basicConfig(format="%(message)s")
    logging.getLogger("dpar").setLevel(logging.INFO)
    try:
        main(argv)
        sys.stdout.flush()
    except InputError as error:
        _say(f"error: {error}", argv)
        return 2
    except KeyboardInterrupt:
        _say("interrupted: nothing half-written is left behind")
        return 128 + signal.SIGINT
    except Exception as error:
        told = refusal_of_disk(error)
        if told is None:
            raise
        _say(f"error: {told}", argv)
        return 3
    return 0


def _say(text: str, argv: Sequence[str] | None = None) -> None:
    """Prints a last message; if there is no space for it or for earlier output, Python does not try again at exit."""
    with suppress(OSError):
        print(redacted(text, argv or ()), file=sys.stderr)
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except OSError:
            setattr(sys, name, None)


def refusal_of_disk(error: BaseException) -> str | None:
    """Message for an error of the file system, however it was wrapped; None for any other error.

    Libraries hide the system's error in one of their own (NumPy, SQLite, Arrow, safetensors), or in its text.
    """
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    for each in chain:
        if getattr(each, "errno", None) in _FULL or _FULL_TEXT.search(str(each)):
            return f"no space left: {_told(each)}; free some space and run the same command again"
    return _told(error) if isinstance(error, OSError) and error.errno is not None else None


def _told(error: BaseException) -> str:
    path = getattr(error, "filename", None)
    place = f" ({path})" if path else ""
    said = getattr(error, "strerror", None) or f"{error}".strip().partition("\n")[0]  # without SQLAlchemy's statement
    return f"{said}{place}; nothing half-written is left behind"


def _show_bug(*raised: Any) -> None:
    """Prints an unexpected exception as Python does, but without passwords."""
    print(redacted("".join(traceback.format_exception(*raised))), end="", file=sys.stderr)
