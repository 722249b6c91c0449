"""The curves of a training on disk."""

import contextlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from dpar.errors import InputError
from dpar.files import digest, write_text
from dpar.train.checkpoint import last_step

HISTORY = "history.jsonl"


def last_of(path: Path) -> int | None:
    """The step of the last line of the curves in `path`; None where there is none."""
    with contextlib.suppress(ValueError, LookupError, TypeError):
        return json.loads(path.read_text("utf-8").splitlines()[-1])["step"]
    return None


class History:
    """The curves of a training as JSON lines; lines after the step to continue from are dropped."""

    def __init__(self, path: Path, step: int, known: str | None = None):
        """Args:
        step: to continue from.
        known: the `digest` at that step; older checkpoints have none.

        Raises:
            InputError: the lines up to `step` are not those that were written.
        """
        self.path = path
        lines = path.read_text("utf-8", "replace").splitlines() if path.exists() else []
        self._lines = [line for line in lines if self._is_before(line, step)]
        if known is not None and known != digest(self._lines):
            if path.exists():
                raise InputError(f"{path} was changed: put it back, or delete it to go on without the curves so far")
            print(f"{path} is gone: the curves up to step {step} are lost", file=sys.stderr)
        write_text(path, self.text())

    @staticmethod
    def _is_before(line: str, step: int) -> bool:
        with contextlib.suppress(ValueError, LookupError, TypeError):  # the last line of a killed process
            return json.loads(line)["step"] <= step
        return False

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Appends the values of a step.

        Raises:
            InputError: a value is not finite, the disk is full or the file cannot be written.
        """
        try:
            line = json.dumps({"step": step, **values}, allow_nan=False)
        except ValueError:
            raise InputError(
                f"training broke: not all of {values} at step {step} is finite; the last good checkpoint: "
                f"{last_step(self.path.parent)}. Lower the learning rate or set `precision: float32`, and begin anew"
            ) from None
        self._lines.append(line)
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(self._lines[-1] + "\n")
        except OSError as error:
            raise InputError(
                f"cannot write {self.path}: {error.strerror}; the last good checkpoint: {last_step(self.path.parent)}; "
                "free some space, or mend the folder, and run the same command again"
            ) from error

    def text(self) -> str:
        """All lines."""
        return "".join(f"{line}\n" for line in self._lines)

    def digest(self) -> str:
        """SHA-256 of all lines once they are on disk, for the checkpoint of this step."""
        with open(self.path, "rb") as file:
            os.fsync(file.fileno())
        return digest(self._lines)
