"""Environment of a job: the commit of the code, the machine and the versions of packages."""

import getpass
import os
import platform
import shutil
import socket
import subprocess
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


def machine() -> dict[str, str]:
    """Host, user, and the scheduler's job where there is one."""
    found = {"host": socket.gethostname()}
    try:
        found["user"] = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        found["user"] = str(os.getuid())
    if "SLURM_JOB_ID" in os.environ:
        found["slurm_job_id"] = os.environ["SLURM_JOB_ID"]
    return found
