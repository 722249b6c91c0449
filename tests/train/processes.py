"""Trainings in processes of their own, which can be killed or work together."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.train import tiny

# Children are copies of one process that has imported everything and computed nothing.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.train.tiny", "torch._dynamo"])


def _run(
    environment: dict[str, str], die_at: int | None, folder: Path, kind: tiny.Kind, settings: dict[str, Any]
) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)  # the bits of a sum depend on how it is divided
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    if die_at is not None:
        _die_at_file_operation(die_at)
    tiny.train(folder, kind, **settings)


def _die_at_file_operation(number: int) -> None:
    """Makes this process die, as of `kill -9`, instead of its `number`-th renaming, linking or removal of a file."""
    done = 0

    def deadly(operation: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any, **kwargs: Any) -> None:
            nonlocal done
            done += 1
            if done == number:
                os._exit(137)
            operation(*args, **kwargs)

        return call

    for name in ("replace", "link", "unlink"):
        setattr(os, name, deadly(getattr(os, name)))


def start(
    folder: Path,
    kind: tiny.Kind,
    *,
    environment: dict[str, str] | None = None,
    die_at: int | None = None,
    **settings: Any,
) -> Any:
    """A process that runs `tiny.train`."""
    process = CONTEXT.Process(target=_run, args=(environment or {}, die_at, folder, kind, settings), daemon=True)
    process.start()
    return process


def train_on_ranks(folder: Path, kind: tiny.Kind, size: int, **settings: Any) -> None:
    """Runs `tiny.train` on `size` ranks that talk over gloo, and asserts that all end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    processes = [
        start(folder, kind, environment=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, **settings)
        for rank in range(size)
    ]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * size
