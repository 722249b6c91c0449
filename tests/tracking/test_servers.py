"""Many results folders carried into one MLflow server at once, over SQLite and over PostgreSQL."""

import multiprocessing
import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from dpar import files, tracking
from dpar.mirror import dashboard
from dpar.mirror import sync as mirror
from dpar.mirror.store import find_store, open_store

pytestmark = pytest.mark.slow
FOLDERS, STEPS = 8, 50


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[str]:
    """The address of an empty PostgreSQL database on this machine, gone after the test."""
    pytest.importorskip("psycopg2", reason="pip install psycopg2-binary")
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    if not programs:
        pytest.skip("PostgreSQL is not installed; apt install postgresql")
    pg_ctl, port, folder = programs[-1], free_port(), tmp_path / "postgres"
    folder.mkdir()
    as_owner: dict = {}
    if os.getuid() == 0:  # the server refuses to run as root
        owner = pwd.getpwnam("postgres")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        for parent in (folder, *folder.parents[:3]):
            parent.chmod(0o755)
        as_owner = {"user": owner.pw_uid, "group": owner.pw_gid, "cwd": "/"}
    data, options = folder / "data", f"-c fsync=off -c listen_addresses=127.0.0.1 -p {port} -k {folder}"
    initialise = [pg_ctl.with_name("initdb"), "-D", data, "-A", "trust", "-U", "dpar", "--no-sync"]
    subprocess.run(initialise, check=True, capture_output=True, **as_owner)
    start = [pg_ctl, "-D", data, "-w", "-t", "300", "-o", options, "-l", folder / "log", "start"]
    subprocess.run(start, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **as_owner)
    yield f"postgresql+psycopg2://dpar@127.0.0.1:{port}/postgres"
    subprocess.run([pg_ctl, "-D", data, "-m", "immediate", "stop"], check=True, capture_output=True, **as_owner)


def record(folder: Path) -> None:
    """A results folder with a training that has curves and a picture, and a table of one row."""
    folder.mkdir(parents=True)
    files.write_json(folder / "experiment.json", {"name": "shared"})
    Image.new("RGB", (8, 8)).save(folder / "grid.png")
    model = folder / "models/dpar/step50"
    job = {"experiment": folder / "experiment.json"}
    with tracking.job(rule="train_model", outputs=[model], **job) as running:
        for step in range(1, STEPS + 1):
            running.metrics({"train/loss": 1 / step}, step=step)
        running.image(folder / "grid.png", key="samples", step=STEPS)
        files.write_text(model / "model.safetensors", "the same in all folders")
    with tracking.job(rule="make_table", inputs=[model], **job) as running:
        running.result(table="t", cell="dpar", params={}, metrics={"eval/fid": 2.0}, sources=[model])


def carry(folder: Path, uri: str) -> None:
    counts = mirror.sync(find_store(folder, uri))
    assert counts is not None
    assert (counts.jobs, counts.problems) == (2, [])


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_eight_folders_are_carried_into_one_server_at_once(backend, tmp_path, request, monkeypatch):
    monkeypatch.setattr(mirror, "DEADLINE", 1200.0)  # eight at once on a busy machine
    if backend == "sqlite":
        shutil.copyfile(request.getfixturevalue("migrated"), tmp_path / "server.db")
        uri = f"sqlite:///{tmp_path / 'server.db'}"
    else:
        uri = request.getfixturevalue("postgres")
    folders = [tmp_path / str(number) / "results" / "shared" for number in range(FOLDERS)]
    for folder in folders:
        record(folder)
    port = free_port()
    with dashboard.serving(find_store(tmp_path / "server", uri), port, seconds=1200):
        address = f"http://127.0.0.1:{port}"
        context = multiprocessing.get_context("fork")
        children = [context.Process(target=carry, args=(folder, address)) for folder in folders]
        for child in children:
            child.start()
        for child in children:
            child.join()
        assert [child.exitcode for child in children] == [0] * FOLDERS
        client = open_store(find_store(folders[0], address))
        ids = {e.name: e.experiment_id for e in client.search_experiments() if e.name.startswith("dpar/")}
        assert ids.keys() == {f"dpar/shared/{kind}" for kind in ("pipeline", "results", "train")}
        trainings = client.search_runs([ids["dpar/shared/train"]])
        assert [run.info.status for run in trainings] == ["FINISHED"] * FOLDERS
        for run in trainings:
            curve = client.get_metric_history(run.info.run_id, "train/loss")
            assert sorted((m.step, m.value) for m in curve) == [(step, 1 / step) for step in range(1, STEPS + 1)]
            assert len(client.list_artifacts(run.info.run_id, "images")) == 2
        assert len(client.search_logged_models([ids["dpar/shared/train"]])) == FOLDERS
        assert len(client.search_runs([ids["dpar/shared/results"]])) == 2 * FOLDERS
