"""The error that is meant for the person at the keyboard, and how a command shows it."""

import logging
import os
import sys
from collections.abc import Callable, Sequence


class InputError(ValueError):
    """Something the user gave cannot be used: what was found, what was expected, where, the next step."""


def run_command(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> int:
    """Exit status of `main(argv)`; an `InputError` or a full disk becomes one line on standard error.

    Returns:
        0 on success, 2 for an `InputError`, 3 for an operating-system error (disk full, no permission).
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger("dpar").setLevel(logging.INFO)
    try:
        main(argv)
        sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader (`| head`) has gone: nothing is left to say, and nobody to say it to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno is None:
            raise
        place = f" ({error.filename})" if error.filename else ""
        print(f"error: {error.strerror or error}{place}; nothing half-written is left behind", file=sys.stderr)
        return 3
    return 0
