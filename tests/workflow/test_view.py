"""The view of a run: a line per finished job, or a part of the terminal, and no signal is lost to it."""

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from dpar.workflow import journal, view


def test_lines_are_said_once_and_short(tmp_path, capsys, monkeypatch):
    results = tmp_path / "results" / "demo"
    log = tmp_path / "run.log"
    log.write_text(
        "SNAKEMAKE\nsmoke: s\nthis run: 2 jobs (2 a)\n  trains   model b\n    wildcards: x=1\nnot checked: y\n"
    )
    lines = view.Lines(results, log)
    lines.refresh()
    lines.refresh()
    assert capsys.readouterr().err.splitlines() == [
        "smoke: s",
        "this run: 2 jobs (2 a)",
        "  trains   model b",
        "not checked: y",
    ]
    journal.begin(results, {"a": 2})
    journal.write(results, "started", job=1, name="a 1", log=[])
    lines.refresh()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(view, "STILL", 0.0)
    lines.refresh()
    assert capsys.readouterr().err.startswith("at work  a 1 (")
    journal.write(results, "finished", job=1)
    log.write_text(log.read_text() + "tracking: MLflow lacks it\n")
    lines.close()
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "tracking: MLflow lacks it"
    assert said[1].startswith("1 of 2  a 1 (")
    assert len(said) == 2


@pytest.mark.parametrize("kind", [view.Lines, view.Screen])
def test_what_jobs_warn_of_is_said_once(tmp_path, capsys, kind):
    """Whoever runs the graph does not read the logs of jobs that went well."""
    results = tmp_path / "results" / "demo"
    (tmp_path / "run.log").touch()
    watched = kind(results, tmp_path / "run.log")
    journal.begin(results, {"a": 3})
    for job, words in enumerate(["few images\nwarning: few images", "few images", "labels \x1b[31m"]):
        (tmp_path / f"{job}.log").write_text(f"step 1\nwarning: {words}\nno warning: of this\ndone\n")
        journal.write(results, "started", job=job, name=f"a {job}", log=[f"{job}.log"])
        journal.write(results, "finished", job=job)
        watched.refresh()
    watched.close()
    said = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert said == ["warning: a 0: few images", r"warning: a 2: labels \x1b[31m"]


def test_a_run_of_before_is_not_shown(tmp_path, capsys):
    journal.begin(tmp_path, {"a": 1})
    journal.write(tmp_path, "started", job=1, name="a", log=[])
    journal.write(tmp_path, "finished", job=1)
    (tmp_path / "run.log").touch()
    time.sleep(0.01)  # so that the clock has gone on
    view.Lines(tmp_path, tmp_path / "run.log").close()
    assert capsys.readouterr().err == ""


PROGRAM = """
import sys
from pathlib import Path
from dpar.commands import run
results = Path("results/demo").resolve()
results.mkdir(parents=True)
with open("run.lock", "w") as lock:
    command = [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(120)"]
    run._watched(results, command, lock, {})
"""


@pytest.mark.parametrize("terminal", [False, True])
def test_who_watches_takes_no_signal_from_who_waits(tmp_path, terminal):
    ours, theirs = pty.openpty()
    streams = {
        "stdout": subprocess.PIPE,
        "stderr": theirs if terminal else subprocess.PIPE,
        "stdin": subprocess.DEVNULL,
    }
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=tmp_path, start_new_session=True, **streams)
    log = tmp_path / "results/demo/logs/run.log"
    while not (log.exists() and "begun" in log.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(1.2)  # until the thread that watches has looked
    process.send_signal(signal.SIGTERM)
    process.communicate()
    os.close(theirs)
    os.close(ours)
    assert process.returncode == 128 + signal.SIGTERM
