"""Trainings in processes of their own, which can be killed or work together."""

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dpar.launched import LAUNCHER
from tests.train import tiny

# Children are copies of one process that has imported everything and computed nothing.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.train.tiny", "torch._dynamo"])


def _run(
    environment: dict[str, str],
    die_at: int | None,
    die_after: float | None,
    said: Path,
    work: Callable[..., Any],
    arguments: dict[str, Any],
) -> None:
    os.environ.update(environment | ({LAUNCHER: str(os.getppid())} if "RANK" in environment else {}))
    torch.set_num_threads(1)  # the bits of a sum depend on how it is divided
    said.parent.mkdir(parents=True, exist_ok=True)
    with open(said, "w") as file:
        os.dup2(file.fileno(), 2)
    if die_at is not None:
        _die_at_file_operation(die_at)
    if die_after is not None:
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, die_after)
    began = time.process_time()
    work(**arguments)
    cpu_seconds(said).write_text(str(time.process_time() - began))


def cpu_seconds(said: Path) -> Path:
    """The file in which a process that wrote to `said` leaves the CPU seconds of its work."""
    return said.with_name(f"{said.name}.cpu_seconds")


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
    folder: Path, kind: tiny.Kind, *, die_at: int | None = None, die_after: float | None = None, **settings: Any
) -> Any:
    """A process that runs `tiny.train`, and dies at its file operation `die_at` or after `die_after` CPU seconds."""
    return _start(tiny.train, {}, folder / "said", {"folder": folder, "kind": kind, **settings}, die_at, die_after)


def _start(
    work: Callable[..., Any],
    environment: dict[str, str],
    said: Path,
    arguments: dict[str, Any],
    die_at: int | None = None,
    die_after: float | None = None,
) -> Any:
    process = CONTEXT.Process(target=_run, args=(environment, die_at, die_after, said, work, arguments), daemon=True)
    process.start()
    return process


def run_on_ranks(work: Callable[..., Any], size: int, folder: Path, **arguments: Any) -> list[tuple[int, str]]:
    """Calls `work(folder=folder, **arguments)` on ranks that talk over gloo; how each ended, and what it said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    said = [folder / f"said{rank}" for rank in range(size)]
    processes = [
        _start(work, common | {"RANK": str(r), "LOCAL_RANK": str(r)}, said[r], {"folder": folder, **arguments})
        for r in range(size)
    ]
    for process in processes:
        process.join(300)
    return [(process.exitcode, path.read_text()) for process, path in zip(processes, said, strict=True)]


def train_on_ranks(folder: Path, kind: tiny.Kind, size: int, **settings: Any) -> Path:
    """The model folder of `tiny.train` on `size` ranks, which all end well."""
    ends = run_on_ranks(tiny.train, size, folder, kind=kind, **settings)
    assert [code for code, _ in ends] == [0] * size, ends
    return folder / f"model{settings['until']}"
