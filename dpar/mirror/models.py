"""The model folder that a run of the dashboard is about."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from dpar.errors import InputError
from dpar.mirror.runs import json_tag
from dpar.mirror.store import Store, existing_store
from dpar.tracking.ledger import JobManifest, Ledger, spool_key
from dpar.weights import WEIGHTS


def model_of_run(store: Store, run_id: str) -> Path:
    """The folder of the model that a run has trained, or whose samples it has measured.

    Args:
        run_id: of a training, of any job after it, or of a row of a table: what the address of its page ends with.

    Raises:
        InputError: there is no store yet, no such run, or it is about no model, or about several.
    """
    client = existing_store(store)
    from mlflow.exceptions import MlflowException  # only now: `existing_store` has told MLflow to keep quiet

    def tags(run: str) -> dict[str, str]:
        return dict(client.get_run(run).data.tags)

    try:
        of_run = tags(run_id)
    except MlflowException:
        raise InputError(
            f"{run_id} is neither a model folder nor a run of {store.describe()}; the id of a run is in the address "
            "of its page, and another one after `dpar track rebuild`, or after a deletion in MLflow and "
            "`dpar track sync`: look there again"
        ) from None
    jobs = [of_run]
    for run in json_tag(of_run, "mlflow.dpar.stage_runs", {}).values():
        with suppress(MlflowException):  # one that was deleted for good
            jobs.append(tags(str(run)))
    ledger = Ledger(store.results)
    keys = {job["mlflow.dpar.key"].rpartition("#")[0] for job in jobs if "mlflow.dpar.key" in job}
    starts = [manifest for manifest in ledger.manifests if spool_key(manifest.spool) in keys]
    found = {folder: None for start in starts for folder in _trained(ledger, start, set())}
    if len(found) != 1:
        about = ", ".join(map(str, found)) or "no trained model"
        raise InputError(f"run {run_id} ({of_run.get('mlflow.runName')}) is about {about}; give a model folder instead")
    return store.results / next(iter(found))


def _trained(ledger: Ledger, job: JobManifest, seen: set[Path]) -> Iterator[str]:
    """The folders of the nearest models of `train_model` that the job made or read, in its turn or through others."""
    if job.spool in seen:
        return
    seen.add(job.spool)
    if job.rule == "train_model":
        yield from (str(Path(path).parent) for path, _ in job.made if Path(path).name == WEIGHTS)
        return
    for artefact in job.inputs:
        for before in ledger.producers(artefact):
            yield from _trained(ledger, before, seen)
