"""The state of a training on disk: the last checkpoints, each complete or ignored, and its origin.

A checkpoint is `step00000400.safetensors` (weights, moments, averages) and then `step00000400.json`, which holds the
digest of the former, the step, and the digest of what the training was made from. A checkpoint without its JSON, or
whose bytes have another digest, does not count; one of another training or step is refused. Nothing in it is
executable. Hashing adds a fifth to the time of writing.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from dpar.errors import InputError
from dpar.files import digest, process_lock, read_json, sha256_file, write_json
from dpar.memory import out_of_memory
from dpar.train.restarts import say_restart
from dpar.weights import write_tensors

KEPT = 2
ORIGIN = "made_from.json"
_STEP = re.compile(r"step(\d{8,})")
_OPTIMIZER_STEP = re.compile(r"(\w+_)?optimizer\.step\.")


@dataclass(frozen=True)
class Checkpoint:
    """One saved state: after `step` optimizer steps, the tensors, and a JSON record of them."""

    step: int
    tensors: dict[str, Tensor]
    record: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix`, named without it."""
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}


@contextmanager
def training_lock(folder: Path) -> Iterator[None]:
    """The lock of the state in `folder`, next to it: it stays where it is when the state is set aside.

    A state that is a link is also locked where it lies, unless nothing can be written there.
    """
    refusal = f"{folder} is being trained by another process; wait for its end or stop it first"
    places = [folder]
    if folder.is_symlink() and os.access(folder.resolve().parent, os.W_OK):
        places.append(folder.resolve())
    with ExitStack() as locks:
        for place in places:
            locks.enter_context(process_lock(place.with_name(f".{place.name}.lock"), refusal))
        yield


def claim_state(folder: Path, made_from: Mapping[str, Any], *, restart: bool = False) -> None:
    """Makes `folder` the state of the training of origin `made_from`, and removes incomplete files of a killed one.

    Args:
        folder: the state; new or an earlier training's.
        made_from: what decides the weights after a step, by name.
        restart: set a state of another origin aside (renamed, next to `folder`) and begin an empty one.

    Raises:
        InputError: the state was made from something else, and not `restart`.
    """
    expected = json.loads(json.dumps(made_from))
    if not (folder / ORIGIN).exists() and _steps(folder):
        if not restart:
            raise InputError(
                f"{folder} has checkpoints and no {ORIGIN} that says what they were made from; put it back, or add "
                "--restart to set the state aside and begin anew"
            )
        set_aside(folder, f"{ORIGIN} is missing")
    if (folder / ORIGIN).exists():
        found = read_json(folder / ORIGIN, kind=dict)
        if differing := [name for name in {**found, **expected} if found.get(name) != expected.get(name)]:
            if not restart:
                changes = "; ".join(f"{name} {found.get(name)}, now {expected.get(name)}" for name in differing)
                raise InputError(
                    f"{folder} holds a training that was made from something else: {changes}. Bring these back to go "
                    "on with it, or add --restart to set it aside and begin anew"
                )
            set_aside(folder, f"{', '.join(differing)} changed")
    write_json(folder / ORIGIN, expected)
    notes = {_paths(folder, step)[1].stem for step in _steps(folder)}
    torn = [path for path in folder.glob("step*.safetensors") if _STEP.fullmatch(path.stem) and path.stem not in notes]
    for path in [*folder.rglob(".*.partial"), *folder.rglob(".tmp*"), *torn]:
        path.unlink()


def set_aside(folder: Path, reason: str) -> None:
    """Renames a state that cannot be continued, with a message."""
    aside = next(path for i in count(1) if not (path := folder.with_name(f"{folder.name}.{i}")).exists())
    folder.rename(aside)
    say_restart(folder, f"{reason}: training begins anew; the old state is now {aside}")


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Adds `checkpoint` to the state in `folder`, and then removes all but the last two.

    Raises:
        InputError: the disk is full or the folder cannot be written; the checkpoints before are untouched.
    """
    weights, note = _paths(folder, checkpoint.step)
    try:
        write_tensors(weights, checkpoint.tensors)
        about = {"step": checkpoint.step, "made_from": origin_of(folder), "sha256": sha256_file(weights)}
        write_json(note, checkpoint.record | about)
    except InputError as error:
        with suppress(OSError):
            weights.unlink(missing_ok=True)
        raise InputError(
            f"the checkpoint of step {checkpoint.step} was not saved (last good one: {last_step(folder)}): {error}"
        ) from error
    for old in _steps(folder)[:-KEPT]:
        _remove(folder, old)


def newest_checkpoint(folder: Path) -> int | None:
    """The step of the newest undamaged checkpoint, if any; damaged ones are removed, with a message.

    Raises:
        InputError: a checkpoint belongs to another training, or to another step than its name says.
    """
    for step in reversed(_steps(folder)):
        problem = _problem(folder, step)
        if problem is None:
            return step
        say_restart(folder, f"checkpoint of step {step} in {folder} is damaged ({problem}): using the one before")
        _remove(folder, step)
    return None


def load_checkpoint(folder: Path, step: int) -> Checkpoint:
    """The state after `step`, which `newest_checkpoint` found good; tensors on the CPU."""
    weights, note = _paths(folder, step)
    return Checkpoint(step, load_file(weights), read_json(note))


@contextmanager
def restoring(folder: Path, step: int) -> Iterator[None]:
    """A block that puts the checkpoint of `step` back into a training, which it may not fit.

    Raises:
        InputError: it does not.
    """
    try:
        yield
    except InputError:
        raise
    except (RuntimeError, LookupError, TypeError, AttributeError, ValueError) as error:
        if out_of_memory(error):
            raise
        weights, note = _paths(folder, step)
        said = " ".join(str(error).split())[:200]
        raise InputError(
            f"{note} and {weights.name} are not of the training that {folder / ORIGIN} describes ({said}); remove the "
            "two, and the training goes on from the checkpoint before"
        ) from error


def last_step(folder: Path) -> str:
    """The newest complete checkpoint, for messages."""
    step = saved_step(folder)
    return "none yet" if step is None else f"step {step} in {folder}"


def saved_step(folder: Path) -> int | None:
    """The step of the newest complete checkpoint, if any; whether it is damaged is not looked at."""
    return max(_steps(folder), default=None)


def _steps(folder: Path) -> list[int]:
    """Steps of the checkpoints that were completely written to `folder`, rising; copies under other names are none."""
    named = (_STEP.fullmatch(note.stem) for note in folder.glob("step*.json"))
    return sorted(int(found[1]) for found in named if found)


def _paths(folder: Path, step: int) -> tuple[Path, Path]:
    return folder / f"step{step:08d}.safetensors", folder / f"step{step:08d}.json"


def _remove(folder: Path, step: int) -> None:
    weights, note = _paths(folder, step)
    note.unlink(missing_ok=True)
    weights.unlink(missing_ok=True)


def _problem(folder: Path, step: int) -> str | None:
    """The fault of a checkpoint, if any."""
    weights, note = _paths(folder, step)
    try:
        found = read_json(note, kind=dict)
    except InputError as error:
        return str(error)
    if "sha256" not in found:
        return f"{note.name} cannot be read"
    if not weights.exists():
        return f"{weights.name} is missing"
    if found["sha256"] != sha256_file(weights):
        return f"{weights.name} does not have the digest that was recorded"
    try:
        taken = _optimizer_steps(weights)
    except SafetensorError as error:
        return f"{weights.name} cannot be read: {error}"
    _expect_own(folder, note, {"step": taken, **found}, step)
    if taken not in (None, step):
        raise InputError(f"{weights} holds the training after step {taken}; remove it and {note.name}")
    return None


def _optimizer_steps(weights: Path) -> int | None:
    """The steps that the optimizer had taken, by its own count; None where it has none."""
    with safe_open(weights, "pt") as file:
        counts = [int(file.get_tensor(name)) for name in file.keys() if _OPTIMIZER_STEP.match(name)]  # noqa: SIM118
    return max(counts, default=None)


def _expect_own(folder: Path, note: Path, found: Mapping[str, Any], step: int) -> None:
    """Refuses a complete checkpoint of another training; older records name no training."""
    if found["step"] not in (None, step):
        raise InputError(
            f"{note} is the checkpoint of step {found['step']} under another name; rename it, or remove it"
        )
    origin = origin_of(folder)
    if origin and not is_own(folder, found, step):
        raise InputError(
            f"{note} is a checkpoint of another training than {folder / ORIGIN} describes; remove it and its weights, "
            "or put the state back that it belongs to"
        )


def is_own(folder: Path, found: Mapping[str, Any], step: int) -> bool:
    """Whether what was saved after `step`, of which `found` tells, was saved by the training of the state `folder`.

    What names no training was saved before all that does.
    """
    if named := found.get("made_from"):
        return named == origin_of(folder)
    return not any(_names_training(_paths(folder, other)[1]) for other in _steps(folder) if other < step)


def _names_training(note: Path) -> bool:
    """Whether a note says what it was made from; one that is damaged does not."""
    with suppress(InputError):
        return "made_from" in read_json(note, kind=dict)
    return False


def origin_of(folder: Path) -> str:
    """The origin digest of the training in `folder`; empty where none is recorded."""
    if not (folder / ORIGIN).exists():
        return ""
    return digest({name: value for name, value in read_json(folder / ORIGIN, kind=dict).items() if value is not None})
