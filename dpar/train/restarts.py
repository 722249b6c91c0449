"""Trainings that did not go on from what they had, kept next to their states for the end of a run."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

RESTARTS = "restarts.jsonl"


def say_restart(state: Path, message: str) -> None:
    """Writes to standard error, and next to the folder `state`, that what was there does not count."""
    print(message, file=sys.stderr)
    with suppress(OSError):  # the training goes on, and has said it
        state.parent.mkdir(parents=True, exist_ok=True)
        with open(state.parent / RESTARTS, "a", encoding="utf-8") as file:
            file.write(json.dumps({"t": time.time(), "message": message}) + "\n")


def restarts(states: Path, since: float) -> Iterator[str]:
    """The messages below the folder `states`, in order.

    Args:
        since: seconds since 1970.
    """
    found: list[tuple[float, str]] = []
    for path in states.rglob(RESTARTS):
        with suppress(OSError):
            for line in path.read_text("utf-8", "replace").splitlines():
                with suppress(ValueError, LookupError, TypeError):  # a torn line
                    entry = json.loads(line)
                    found.append((float(entry["t"]), str(entry["message"])))
    return (message for t, message in sorted(found) if t >= since)
