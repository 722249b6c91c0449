"""Snakemake on this checkout, from a folder of its own."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

Snakemake = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def snakemake(tmp_path) -> Snakemake:
    """Runs `snakemake` with the given arguments on this checkout's Snakefile; results lie in `tmp_path`."""

    def run(*arguments: str | Path, cwd: Path = tmp_path) -> "subprocess.CompletedProcess[str]":
        snakefile = () if cwd == ROOT else ("--snakefile", ROOT / "Snakefile")
        directory = ("--directory", tmp_path) if cwd == ROOT else ()
        command = [sys.executable, "-m", "snakemake", *snakefile, *directory, *arguments]
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        return subprocess.run(
            list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=1200
        )

    return run


def job_counts(output: str) -> dict[str, int]:
    """Rule -> number of jobs in the `Job stats` of a dry run."""
    return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", output, flags=re.MULTILINE)}


def asked_resources(output: str) -> dict[str, dict[str, str]]:
    """Rule -> what its jobs ask for, in the words of a dry run."""
    found = re.findall(r"^ *(?:local)?rule (\w+):\n(?:    .*\n)*?    +resources: (.*)$", output, flags=re.MULTILINE)
    return {rule: dict(part.split("=", 1) for part in resources.split(", ")) for rule, resources in found}
