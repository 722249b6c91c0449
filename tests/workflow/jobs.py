"""Every job of a small graph, run in this process: the commands are those that Snakemake would run, in their order."""

import contextlib
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dpar.experiment.loading import parse_experiment
from dpar.files import write_json
from tests.workflow.conftest import ROOT
from tests.workflow.test_end_to_end import tiny


@dataclass(frozen=True)
class Job:
    """A stage and its flags, with paths relative to the folder that holds results/."""

    rule: str
    argv: tuple[str, ...]

    def run(self) -> str:
        """What the stage says on its way to the end, or to its error."""
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            importlib.import_module(f"dpar.stages.{self.rule}").main(list(self.argv))
        return said.getvalue()

    @property
    def flags(self) -> dict[str, list[str]]:
        """Each flag with its values."""
        found: dict[str, list[str]] = {}
        for word in self.argv:
            if word.startswith("--"):
                values = found.setdefault(word, [])
            else:
                values.append(word)
        return found

    def given(self, **flags: Path) -> "Job":
        """The same with other values of some flags."""
        changed = self.flags | {f"--{name.replace('_', '-')}": [str(value)] for name, value in flags.items()}
        return Job(self.rule, tuple(word for flag, words in changed.items() for word in (flag, *words)))

    def __str__(self) -> str:
        return f"{self.rule} {' '.join(self.argv)}"


def small_experiment() -> dict[str, Any]:
    """Two models, three cells, a gate, two milestones, seeds and shards: something of each kind to mistake it for."""
    values = tiny(codes__train_shards=2, codes__val_shards=2, evaluation__linear_probe={"iterations": 5})
    values["images"]["generated"] = {"train": 24, "val": 12}
    values["tables"] = {
        "comparison": {
            "title": "Both",
            "linear_probe": True,
            "rows": [{"model": "llamagen"}, {"model": "dpar"}, {"model": "dpar", "milestone": 2}],
        },
        "gates": {"title": "Gates", "rows": [{"model": "dpar"}], "vary": {"inference.gate": ["small", "other"]}},
    }
    values["tokenizer"]["training"] |= {"steps": 2, "batch_size": 4, "checkpoint_every": 1}
    steps = {"steps": 4, "batch_size": 4, "checkpoint_every": 2, "validate_every": 4, "log_every": 2}
    for place in (values, values["entropy_model"]):
        place["training"] = {**place["training"], **steps}
    gate = {"model": {"architecture": "llamagen", "width": 32, "heads": 1, "layers": 1}, "training": values["training"]}
    values["gates"] = {"small": gate, "other": gate | {"kind": "distilled"}}
    values["training"] = {**values["training"], "milestones": [2]}
    values["sampling"] |= {"num_images": 8, "seeds": [0, 1], "batch_size": 4, "cfg_scale": 1, "shards": 2}
    values["evaluation"]["classifier"]["steps"] = 2
    return values


def planned(folder: Path) -> list[Job]:
    """The graph's jobs on results in `folder`, each after those that it waits for."""
    (folder / "small.yaml").write_text(yaml.safe_dump(small_experiment()))
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--configfile", "small.yaml"]
    return listed_jobs([*command, "--dry-run", "--printshellcmds", "--cores", "1"], folder, folder)


def listed_jobs(command: Sequence[str | Path], folder: Path, cwd: Path) -> list[Job]:
    """The jobs that a dry run with `--printshellcmds` names, with a cache of Snakemake's in `folder`."""
    listed = subprocess.run(
        list(map(str, command)),
        cwd=cwd, env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert listed.returncode == 0, listed.stdout + listed.stderr
    found = []
    for line in (listed.stdout + listed.stderr).splitlines():
        if match := re.search(r"dpar\.stages\.(\w+) (.*?) 2>&1", line):
            found.append(Job(match[1], tuple(shlex.split(match[2]))))
    return found


def build(folder: Path) -> list[Job]:
    """Runs the whole graph in `folder`; its jobs."""
    jobs = planned(folder)
    experiment = parse_experiment(small_experiment(), "the test").model_dump(mode="json")
    write_json(folder / "results" / "tiny" / "experiment.json", experiment)
    with within(folder):
        for job in jobs:
            job.run()
    return jobs


@contextlib.contextmanager
def within(folder: Path) -> Iterator[None]:
    """Works in `folder`, with a cache of decoded codes there."""
    before, cache = Path.cwd(), os.environ.get("DPAR_CACHE")
    os.chdir(folder)
    os.environ["DPAR_CACHE"] = str(folder / "codes")
    try:
        yield
    finally:
        os.chdir(before)
        if cache is None:
            del os.environ["DPAR_CACHE"]
        else:
            os.environ["DPAR_CACHE"] = cache
