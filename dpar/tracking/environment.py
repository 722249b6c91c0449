"""Environment of a job: the commit of the code, the machine and the versions of packages."""

import getpass
import os
import platform
import shutil
import socket
import subprocess
from collections import Counter
from functools import cache
from importlib import metadata
from pathlib import Path

_PACKAGES = ("dpar", "torch", "numpy", "pyarrow", "safetensors", "xformers")


def git_commit(root: Path | None = None) -> tuple[str | None, bool]:
    """The commit of a checkout and whether tracked files differ from it; None outside a git checkout.

    Args:
        root: by default where this package was imported from.
    """
    root = root or Path(__file__).resolve().parents[2]
    if shutil.which("git") is None or not (root / ".git").exists():
        return None, False

    def git(*arguments: str) -> str:
        finished = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, encoding="utf-8", errors="replace", check=False
        )
        return finished.stdout.strip() if finished.returncode == 0 else ""

    commit = git("--no-optional-locks", "rev-parse", "HEAD")
    return commit or None, bool(commit and git("--no-optional-locks", "status", "--porcelain", "-uno"))


def versions() -> dict[str, str]:
    """Python's version and those of the packages that decide numbers."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def processor() -> str:
    """The processor's name as the system gives it, with its cores."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text("utf-8", "replace").splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor() or platform.machine()


@cache
def gpus() -> str:
    """The cards that NVIDIA's driver knows, whether or not a job uses them; empty without any."""
    known = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines = path.read_text("utf-8", "replace").splitlines()
        known += [line.split(":", 1)[1].strip() for line in lines if line.startswith("Model:")]
    return ", ".join(f"{count} x {name}" for name, count in Counter(known).items())


def machine() -> dict[str, str]:
    """Host, user, processor and GPUs, and the scheduler's job where there is one."""
    found = {"host": socket.gethostname(), "processor": processor()} | ({"gpus": gpus()} if gpus() else {})
    try:
        found["user"] = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        found["user"] = str(os.getuid())
    if "SLURM_JOB_ID" in os.environ:
        found["slurm_job_id"] = os.environ["SLURM_JOB_ID"]
    return found
