"""Last event of each job, and how much of its record MLflow does not show yet."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from dpar.errors import InputError
from dpar.mirror.runs import RunWriter, stored_runs
from dpar.mirror.store import Store, open_store, tracking_folder, writer_lock
from dpar.tracking.ledger import faults, is_running, read_events, spool_key, spools
from dpar.tracking.replay import Run, replay
from dpar.tracking.spool import EVENTS

if TYPE_CHECKING:
    from mlflow import MlflowClient


def report(store: Store) -> str:
    """One line per job, the oldest first, then what waits to be shown. Works without MLflow."""
    found = spools(store.results)
    if not found:
        return f"no job has been recorded in {store.results} yet"
    shown, problem = _shown(store)
    lines = [f"{'state':10} {'tries':>5} {'step':>8} {'ended or last word':19}  job"]
    waiting, damage = 0, []
    for spool in found:
        runs = replay(read_events(spool, damage))
        host = runs[-1].about["machine"]["host"] if runs else ""
        damage += faults(spool, runs[-1] if runs else None, is_running(spool, host))
        if not runs:
            continue
        current = shown.get(spool_key(spool)) == (spool / EVENTS).stat().st_size
        waiting += not current
        lines.append(_line(spool, runs[-1]) + ("" if current or problem else "  (not in MLflow yet)"))
    lines += ["", *(f"left out: {fault}" for fault in damage)]
    if problem:
        lines.append(f"MLflow: {problem}")
    else:
        lines.append(f"MLflow at {store.describe()} lacks news of {waiting} of {len(found)} jobs")
        may_write = os.access(tracking_folder(store.results), os.W_OK, effective_ids=True)
        lines += ["`dpar track sync` brings them"] if waiting and may_write else []
    return "\n".join(lines)


def _line(spool: Path, run: Run) -> str:
    last_word = (spool / EVENTS).stat().st_mtime
    state = run.status
    host = run.about["machine"]["host"]
    if state == "RUNNING":
        alive = is_running(spool, host)
        state = {True: "RUNNING", False: "KILLED", None: f"on {host}"}[alive]
    step = max((point.step for point in run.points if not point.key.startswith("system/")), default=0)
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(last_word))
    reason = f"  {run.reason.splitlines()[0][:100]}" if run.status == "FAILED" and run.reason else ""
    return f"{state:10} {run.attempts:5d} {step or '':>8} {when:19}  {run.about['name']}{reason}"


def _shown(store: Store) -> tuple[dict[str, int], str | None]:
    """Bytes of each spool that the store shows, or the reason why that is unknown."""
    if store.database and not store.database.exists():
        return {}, None
    try:
        with writer_lock(store):
            client = open_store(store)
        return _bytes_seen(store, client), None
    except InputError as error:
        return {}, str(error)


def _bytes_seen(store: Store, client: "MlflowClient") -> dict[str, int]:
    """Bytes of each spool that the store shows."""
    from mlflow.exceptions import MlflowException

    try:
        ids = [experiment.experiment_id for experiment in client.search_experiments()]
        writers = [RunWriter(client, run) for run in stored_runs(client, ids) if "mlflow.dpar.key" in run.data.tags]
    except MlflowException as error:
        raise InputError(f"{store.describe()} refused: {store.reason(error)}") from None
    return {writer.key.partition("#")[0]: writer.bytes_seen for writer in writers}
