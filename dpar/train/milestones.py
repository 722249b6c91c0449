"""The milestones that a training has passed: kept copies of its network, and where to go on from them."""

import os
import shutil
import sys
from pathlib import Path

from dpar.errors import InputError
from dpar.files import atomic_write, sha256_file
from dpar.train.checkpoint import claim_state, is_own, newest_checkpoint
from dpar.train.history import HISTORY, last_of
from dpar.train.restarts import say_restart
from dpar.train.task import Task
from dpar.weights import CONFIG, model_config, model_settings, verify_model


def begin(task: Task, until: int, state: Path, kept: Path, again: Path, restart: bool) -> tuple[Path, int]:
    """Prepares the state to continue: its folder, and its number of steps, or `until` if that milestone was kept.

    A state that has passed `until` may have cost weeks and is still good for what lies ahead of it: it stays as it is,
    and what it kept no copy of is trained again in the folder `again`.
    """
    claim_state(state, task.made_from, restart=restart)
    if is_whole(kept, task, until):
        return state, until
    done = newest_checkpoint(state) or 0
    if done <= until:
        return state, done
    problem = f"{state} stands at step {done}, past step {until}, and kept no copy of it"
    if not restart:
        raise InputError(f"{problem}; add --restart to train to step {until} again, next to that state")
    print(f"{problem}: training to step {until} again in {again}; the state stays as it is", file=sys.stderr)
    claim_state(again, task.made_from)
    return again, newest_checkpoint(again) or 0


def is_whole(folder: Path, task: Task, step: int) -> bool:
    """Whether a kept milestone is complete and undamaged; one that is not is trained again.

    Raises:
        InputError: it is another network, or belongs to another training, or to another step than its name says.
    """
    try:
        verify_model(folder)
    except InputError as error:
        if folder.exists():
            say_restart(folder.parents[1], f"the kept milestone {folder} does not count: {error}")
        return False
    if not (history := folder / HISTORY).exists():
        return False
    _expect_network(folder, task)
    said = model_config(folder)["provenance"]  # of older ones empty
    if said.get("step", step) != step or not is_own(folder.parents[1], said, step):
        raise InputError(
            f"{folder} is of another training or step than its place says; remove it, or put back what was there"
        )
    if said.get("history", found := sha256_file(history)) != found or last_of(history) != step:
        raise InputError(f"{history} was changed after it was kept; put it back, or remove {folder} to train it again")
    return True


def _expect_network(folder: Path, task: Task) -> None:
    """Refuses a kept milestone whose config.json describes another network than the one in training."""
    kind, model = model_settings(folder)
    unrounded = {"attention"} if "attention" in type(model).model_fields else set()
    if kind is not type(task.model) or model.model_dump(exclude=unrounded) != task.model.config.model_dump(
        exclude=unrounded
    ):
        raise InputError(
            f"{folder / CONFIG} describes another network than this training's; put back what was there, or remove "
            f"{folder} to train it again"
        )


def link(source: Path, target: Path) -> None:
    """Hard link (or copy, where the file system has none) of `source` at `target`."""
    with atomic_write(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
