"""Whatever happens to the store: jobs end well, and their records arrive once it is back."""

import multiprocessing
import resource
import signal
import socket
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from dpar.errors import InputError, run_command
from dpar.mirror import sync as mirror
from dpar.mirror.store import Store, find_store
from dpar.tracking.ledger import Ledger, spools

STEPS = 20


def train(job, results: Path, number: int = 0, kilobytes: int = 1) -> None:
    """A job with curves and a report of some size."""
    name = f"report{number}.json"
    with job("train_model", name=f"train_model[{number}]", outputs=(name,), params={"number": number}) as running:
        for step in range(1, STEPS + 1):
            running.metrics({"train/loss": 1 / step}, step=step)
            running.commit(step)
        (results / name).write_text(" " * 1000 * kilobytes)


def all_at_once(work: Callable[[int], None], count: int) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_sixteen_jobs_end_well_beside_a_locked_database_and_their_records_arrive_later(
    results: Path, store: Store, job, query, monkeypatch: pytest.MonkeyPatch
):
    from mlflow.store.db import utils

    text = utils.sql.text  # MLflow waits 20 s for a lock, whatever it is told
    monkeypatch.setattr(utils.sql, "text", lambda sql: text(sql.replace("busy_timeout = 20000", "busy_timeout = 50")))
    assert store.database is not None
    with sqlite3.connect(store.database, isolation_level=None) as other:
        other.execute("begin exclusive")
        all_at_once(lambda number: train(job, results, number), 16)
        assert len(Ledger(results).manifests) == 16
        with pytest.raises(InputError, match="database is locked"):
            mirror.sync(store)
        other.execute("rollback")
    other.close()
    counts = mirror.sync(store)
    assert counts is not None
    assert (counts.jobs, counts.problems) == (16, [])
    assert query("select count(*), count(distinct run_uuid) from metrics where key='train/loss'") == [(16 * STEPS, 16)]
    assert query("select distinct status from runs") == [("FINISHED",)]


@pytest.mark.parametrize("full", ["the database's disk", "the disk of files"])
def test_a_full_disk_of_the_store_stops_no_job_and_loses_no_record(
    results: Path, store: Store, job, query, dump, full: str, capfd
):
    """No file of the process that syncs may grow beyond a limit: what a full disk does, at a place of our choice."""
    assert store.database is not None
    before = store.database.stat().st_size
    limit = before // 2 if full == "the database's disk" else before + 10**6
    train(job, results, kilobytes=5000)

    def sync() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        raise SystemExit(run_command(lambda _: print(mirror.sync(store))))

    child = multiprocessing.get_context("fork").Process(target=sync)
    child.start()
    train(job, results, 1)
    child.join()
    said = capfd.readouterr().err
    assert (child.exitcode, said.count("\n"), said.startswith("error: the tracking store sqlite:")) == (2, 1, True), (
        said
    )
    assert len(Ledger(results).manifests) == len(spools(results)) == 2

    counts = mirror.sync(store)
    assert counts is not None
    assert counts.problems == []
    steps = query("select step from metrics join runs using (run_uuid) where key='train/loss' order by name, step")
    assert [step for (step,) in steps] == [*range(1, STEPS + 1)] * 2
    assert query("select distinct status from runs") == [("FINISHED",)]
    copied = {Path(path).name: len(content) for path, content in dump()[1].items() if "/outputs/" in path}
    assert copied == {"report0.json": 5_000_000, "report1.json": 1000}


def test_a_server_that_hangs_is_given_up_and_the_job_never_knows(results: Path, store: Store, job, monkeypatch, query):
    monkeypatch.setattr("dpar.mirror.server.PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listening:  # takes connections, and never says a word
        away = find_store(results, f"http://127.0.0.1:{listening.getsockname()[1]}")
        train(job, results)
        with pytest.raises(InputError, match=r"no MLflow server at http://127\.0\.0\.1:\d+ \(timed out\)"):
            mirror.sync(away)
    mirror.sync(store)
    assert query("select count(*) from metrics where key='train/loss'") == [(STEPS,)]
