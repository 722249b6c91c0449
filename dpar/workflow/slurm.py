"""Queries to Slurm before jobs are submitted, and requeueing of a job that goes on after its time limit."""

import math
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from dpar.errors import InputError
from dpar.files import write_text


def minutes(limit: str) -> float:
    """A time limit as Slurm prints it (`infinite`, `30:00`, `1-00:00:00`), in minutes.

    Raises:
        ValueError: another text.
    """
    if limit == "infinite":
        return math.inf
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if found is None:
        raise ValueError(f"{limit!r} is no time limit of Slurm's")
    days, hours, whole, seconds = (int(part or 0) for part in found.groups())
    return days * 24 * 60 + hours * 60 + whole + seconds / 60


def check_partitions(asked: Iterable[tuple[str, str | None, float | None]], longest: dict[str, float]) -> None:
    """Refuses jobs that no partition would ever start.

    Args:
        asked: rule, partition and minutes of each job; without a partition it goes to Slurm's default, unchecked.
        longest: minutes that a job may take, by partition.

    Raises:
        InputError: a partition that is not there, or that has less time than a job asks for.
    """
    for rule, partition, time in asked:
        if not partition:
            continue
        names = partition.split(",")  # Slurm takes the first that is free
        if unknown := [name for name in names if name not in longest]:
            raise InputError(
                f"rule {rule} asks for the partition {unknown[0]}, which this cluster does not have; it has "
                f"{', '.join(longest)}. Set DPAR_CPU_PARTITION and DPAR_GPU_PARTITION (docs/cluster.md)"
            )
        allowed = max(longest[name] for name in names)
        if time is not None and time > allowed:
            raise InputError(
                f"rule {rule} asks for {time:.0f} minutes in the partition {partition}, where a job may take "
                f"{allowed:.0f}: it would wait for ever. Set DPAR_MINUTES to at most that (docs/cluster.md)"
            )


def longest_jobs() -> dict[str, float]:
    """The minutes that a job may take in each of this cluster's partitions.

    Raises:
        InputError: there is no Slurm here, or it does not answer.
    """
    lines = _ask("sinfo", "--noheader", "--format=%R %l").splitlines()
    try:
        return {partition: minutes(limit) for partition, limit in map(str.split, lines)}
    except ValueError as error:
        raise InputError(f"sinfo says what is not understood: {error}") from None


def claim_jobs(record: Path, run: str) -> None:
    """Notes in `record` that jobs called `run...` work from now on, if those of the run before have ended.

    Raises:
        InputError: they have not; or Slurm does not answer.
    """
    if record.exists():
        before = record.read_text("utf-8")
        queue = [line.split() for line in _ask("squeue", "--me", "--noheader", "--format=%i %j").splitlines()]
        if jobs := [job for job, name in queue if name.startswith(before)]:
            raise InputError(
                f"Slurm still has jobs of a run of this experiment that was killed: {' '.join(jobs)}. Let them finish "
                f"(nothing is lost, squeue shows them), or stop them (`scancel {' '.join(jobs)}`: a training saves its "
                "state first); then run the same command again"
            )
    write_text(record, run)


def start_again(job: str) -> str:
    """Has a running job start again with a new time limit, unless somebody stops it; what was done, for the log.

    A job that is cancelled or preempted is not running any more for Slurm, even while its processes save their state.
    """
    try:
        if _ask("squeue", "--noheader", f"--jobs={job}", "--format=%T").strip() != "RUNNING":
            return f"Slurm is stopping job {job}: it is not asked to start it again"
        _ask("scontrol", "requeue", job)
    except InputError as error:
        return f"job {job} was not put back into Slurm's queue: {error}; Snakemake submits it again"
    return f"job {job} goes back into Slurm's queue, to go on from there"


def _ask(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=True).stdout
    except FileNotFoundError:
        raise InputError(
            f"there is no Slurm here: {command[0]} is not on the PATH. Call this on a login node of the cluster (is a "
            "module to be loaded?), or without --profile slurm"
        ) from None
    except subprocess.CalledProcessError as error:
        raise InputError(f"`{' '.join(command)}` failed: {error.stderr.strip()}") from None
