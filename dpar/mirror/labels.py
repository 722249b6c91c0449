"""Tags of a run, and its inputs as datasets."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpar.tracking.replay import Run

MANY = 20  # inputs of one folder from which on they are one dataset, and rows of a list in a description


def job_tags(run: Run) -> dict[str, str]:
    """Tags of a run that never change."""
    about = run.about
    tags = {
        "dpar.rule": about["rule"],
        "dpar.experiment": about["experiment"],
        "mlflow.dpar.identity": about["identity"],
        "dpar.settings": about["config"],
        "dpar.host": about["machine"]["host"],
        "dpar.python": about["versions"].get("python", ""),
        "dpar.torch": about["versions"].get("torch", ""),
        "mlflow.runName": about["name"] + (f" ({run.generation + 1})" if run.generation else ""),
        "mlflow.user": about["machine"]["user"],
        "mlflow.source.type": "JOB",
        "mlflow.source.name": f"Snakefile:{about['rule']}",
    }
    if about["commit"]:
        tags["mlflow.source.git.commit"] = about["commit"]
        tags["dpar.commit"] = about["commit"][:10] + ("+changes" if about["dirty"] else "")
    if "slurm_job_id" in about["machine"]:
        tags["dpar.slurm_job_id"] = about["machine"]["slurm_job_id"]
    return tags


def state_tags(run: Run, stale: bool) -> dict[str, str]:
    """Tags of a run that may change: the job's own, its attempts, and its errors."""
    tags = {**run.tags, "dpar.attempts": str(run.attempts)}
    if run.reason:
        tags["dpar.reason"] = run.reason
    if stale:
        tags["dpar.stale"] = "true"
    if run.results:
        tags["dpar.tables"] = ", ".join(dict.fromkeys(event["table"] for event in run.results))
    odd = [point for point in run.points if point.value != point.value or abs(point.value) == float("inf")]
    if odd:
        tags["dpar.nonfinite"] = f"{odd[0].key} = {odd[0].value} at step {odd[0].step}; {len(odd)} such values"
    return tags


@dataclass(frozen=True)
class Group:
    """Inputs that count as one dataset."""

    path: str
    sha256: str
    members: list[dict[str, Any]]


def grouped(inputs: list[dict[str, Any]]) -> list[Group]:
    """Each input by itself; many files of one folder as the folder, with a digest over theirs."""

    def groups() -> Iterator[Group]:
        folders: dict[str, list[dict[str, Any]]] = {}
        for artefact in inputs:
            folders.setdefault(str(Path(artefact["path"]).parent), []).append(artefact)
        for folder, members in folders.items():
            if len(members) <= MANY:
                yield from (Group(artefact["path"], artefact["sha256"], [artefact]) for artefact in members)
            else:
                lines = sorted(f"{artefact['sha256']}  {Path(artefact['path']).name}\n" for artefact in members)
                yield Group(folder, hashlib.sha256("".join(lines).encode()).hexdigest(), members)

    return list(groups())
