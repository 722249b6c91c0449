import http.client
import json
import multiprocessing
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from dpar import tracking
from dpar.commands import track
from dpar.errors import InputError, run_command
from dpar.tracking.places import results_folder


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results of one finished job below the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DPAR_TRACKING_URI", raising=False)
    folder = Path("results/demo")
    folder.mkdir(parents=True)
    (folder / "experiment.json").write_text(json.dumps({"name": "demo"}))
    with tracking.job(rule="train_model", experiment=folder / "experiment.json", outputs=[folder / "a.txt"]) as job:
        (folder / "a.txt").write_text("a")
        job.metrics({"train/loss": 1.0}, step=1)
    return folder


def test_sync_status_audit_rebuild_and_views_work_together(results: Path, capsys: pytest.CaptureFixture):
    track.main(["sync"])
    assert capsys.readouterr().out.startswith("1 jobs with news, ")
    track.main(["status"])
    assert "lacks news of 0 of 1 jobs" in capsys.readouterr().out
    Path("outputs.txt").write_text("results/demo/a.txt\n\n")
    track.main(["audit", "--outputs", "outputs.txt"])
    assert "     1  tracked" in capsys.readouterr().out
    track.main(["views"])
    assert "dpar/demo/train: 1 Trainings\n    http://dpar.localhost:5000/#/experiments/" in capsys.readouterr().out
    (results / "a.txt").write_text("b")
    with pytest.raises(SystemExit) as ended:
        track.main(["audit", "--outputs", "outputs.txt"])
    assert ended.value.code == 1
    assert "changed: results/demo/a.txt: not what train_model made" in capsys.readouterr().out
    with sqlite3.connect(results / "tracking" / "mlflow.db") as connection:
        before = connection.execute("select run_uuid from runs").fetchall()
    track.main(["rebuild", "--results", "results/demo"])
    assert "made again in" in capsys.readouterr().out
    with sqlite3.connect(results / "tracking" / "mlflow.db") as connection:
        after = connection.execute("select run_uuid from runs").fetchall()
    assert len(after) == len(before) == 1
    assert after != before


def test_the_audit_asks_the_graph_with_the_experiment_of_the_results(results: Path, monkeypatch, capsys):
    asked: list[Path] = []

    def outputs(snakefile: Path, configfile: Path, directory: Path) -> list[Path]:
        asked.extend((snakefile, configfile, directory))
        return [results / "a.txt"]

    monkeypatch.setattr(track, "graph_outputs", outputs)
    track.main(["sync"])
    track.main(["audit"])
    assert asked == [Path("Snakefile"), results / "experiment.json", Path()]
    monkeypatch.setattr(track, "graph_outputs", lambda *_: [])
    with pytest.raises(InputError, match="no outputs to audit"):
        track.main(["audit"])
    results.rename("results/copy")
    with pytest.raises(InputError, match=r"results/copy has another name or place than a run gives it, results/demo"):
        track.main(["audit", "--results", "results/copy"])


def test_the_latest_results_are_meant_when_none_are_named(results: Path):
    assert results_folder(None) == results
    other = Path("results/photos64/tracking")
    other.mkdir(parents=True)
    os.utime(other, (0, 0))
    assert results_folder(None) == results
    os.utime(results / "tracking", (-1, -1))
    assert results_folder(None) == other.parent


def test_missing_results_and_bad_addresses_are_one_line(results: Path, capsys, monkeypatch):
    for arguments, message in (
        (["status", "--results", "results/none"], "results/none is not a folder"),
        (["sync", "--uri", "htp://x"], "'htp://x' is not a tracking address"),
        (["audit", "--outputs", "none.txt"], "none.txt does not exist"),
    ):
        assert run_command(track.main, arguments) == 2
        errors = capsys.readouterr().err
        assert message in errors
        assert errors.count("\n") == 1
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert run_command(track.main, ["sync"]) == 2
    assert "the records wait in" in capsys.readouterr().err
    monkeypatch.chdir("results")
    with pytest.raises(InputError, match="no results below"):
        results_folder(None)


GUARDED = """
import builtins, os, sys
imported = builtins.__import__
def guarded(name, *rest, **more):
    if name.split(".")[0] == "mlflow":
        assert os.environ.get("MLFLOW_DISABLE_TELEMETRY") == os.environ.get("DO_NOT_TRACK") == "true", name
        assert os.environ.get("MLFLOW_ALLOW_PICKLE_DESERIALIZATION") == "false", name
    return imported(name, *rest, **more)
builtins.__import__ = guarded
from dpar.cli import main
try:
    main(["track", "audit", "--outputs", "outputs.txt"])
except SystemExit as ended:
    assert ended.code == 1  # the store is empty
assert "mlflow" in sys.modules
"""


def test_mlflow_is_told_to_keep_quiet_before_it_is_imported(results: Path, migrated: Path):
    """It asks its telemetry's server for instructions as soon as it is imported."""
    shutil.copyfile(migrated, results / "tracking" / "mlflow.db")
    Path("outputs.txt").write_text("results/demo/a.txt\n")
    told = ("MLFLOW_", "DO_NOT_TRACK")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(told)}
    environment["PYTHONPATH"] = str(Path(tracking.__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", GUARDED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_folder_that_is_no_results_folder_is_refused_and_left_alone(tmp_path: Path, capsys):
    empty, file = tmp_path / "empty", tmp_path / "file"
    empty.mkdir()
    file.touch()
    for folder in (empty, file, tmp_path / "none"):
        for action in ("sync", "status", "audit", "rebuild", "views", "ui"):
            assert run_command(track.main, [action, "--results", str(folder)]) == 2
            said = capsys.readouterr().err
            assert said.count("\n") == 1
            assert str(folder) in said
    assert list(empty.iterdir()) == []


def test_results_that_may_only_be_read_are_told_in_a_line(results: Path, monkeypatch, capfd):
    """As another user, since root may write everything."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        shutil.copytree(results, Path(folder, "results", "demo"))
        monkeypatch.chdir(folder)

        def ask() -> None:
            os.chmod("results/demo/tracking", 0o555)
            if os.getuid() == 0:
                os.seteuid(65534)
            statuses = [run_command(track.main, [action]) for action in ("sync", "status", "rebuild", "views", "ui")]
            raise SystemExit(statuses != [2, 0, 2, 2, 2])

        child = multiprocessing.get_context("fork").Process(target=ask)
        child.start()
        child.join()
        os.chmod("results/demo/tracking", 0o755)
        monkeypatch.undo()
    out, err = capfd.readouterr()
    assert child.exitcode == 0, out + err
    assert "FINISHED" in out
    assert "brings them" not in out
    assert err.count("\n") == err.count("error: cannot write ") == 4


@pytest.mark.slow
def test_the_dashboard_listens_on_this_machine_alone_and_calls_nobody(results: Path, connections):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    known = subprocess.run([sys.executable, "-c", "import socket; socket.socket().bind(('', 0))"], check=False)
    assert known.returncode == 0
    assert [line[0] for line in connections.abroad()] == ["bind"]  # so what follows would be seen
    connections.file.write_text("")

    command = [sys.executable, "-m", "dpar.cli", "track", "ui", "--port", str(port), "--refresh", "1"]
    environment = {**os.environ, "http_proxy": "http://127.0.0.1:9", "MLFLOW_HOST": "0.0.0.0"}  # obeyed?
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        asked = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        asked.request("GET", "/")
        assert asked.getresponse().status == 200
        children = psutil.Process(process.pid).children(recursive=True)
        listening = {c.laddr.ip for child in children for c in child.net_connections("inet") if c.status == "LISTEN"}
        process.terminate()
        process.communicate(timeout=120)
    assert f"http://dpar.localhost:{port}" in first
    assert listening == {"127.0.0.1"}
    assert connections.processes() >= 2
    assert connections.abroad() == []
