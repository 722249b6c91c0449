"""Ranks that fail, are killed or are asked to stop: what the launcher says, and that the same command goes on."""

import os
import re
import signal
import subprocess
import sys

import psutil
import pytest

from dpar.workflow import torchrun
from tests.train.processes import train_on_ranks
from tests.train.test_loop import same_weights
from tests.train.worker import LINGER_S

# torchrun kills what does not end in this time once it ends ranks itself
IMPATIENT = {"OMP_NUM_THREADS": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(LINGER_S // 4)}


def launch(*arguments) -> subprocess.Popen:
    """The worker on two ranks."""
    line = [sys.executable, "-m", "dpar.workflow.launch", "--gpus", "2", "tests.train.worker", *map(str, arguments)]
    return subprocess.Popen(line, env=os.environ | IMPATIENT, stderr=subprocess.PIPE, text=True)


def finished(folder, until):
    """The model folder when the same command has run to its end."""
    process = launch(folder, until)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said
    return folder / f"model{until}", said


def test_a_signal_before_there_are_ranks_ends_the_launcher_with_75(monkeypatch):
    monkeypatch.setattr(psutil.Process, "children", lambda self: [])
    with pytest.raises(SystemExit) as stop:
        torchrun._pass_on(signal.SIGTERM, None)
    assert stop.value.code == 75


@pytest.mark.slow
@pytest.mark.parametrize(("what", "reason"), [("raise", "RuntimeError: rank 1 fails on purpose"), ("kill", "SIGKILL")])
def test_a_rank_that_ends_stops_the_job_with_the_reason_and_costs_no_bit(tmp_path, what, reason):
    process = launch(tmp_path, 8, what)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 1
    assert reason in said
    assert ("Traceback" in said and "in failing" in said) or what == "kill"
    again, _ = finished(tmp_path, 8)
    assert same_weights(again, train_on_ranks(tmp_path / "whole", "dpar", 2, until=8))


@pytest.mark.slow
def test_a_signal_to_the_launcher_lets_ranks_save_in_their_own_time_and_exit_with_75(tmp_path):
    process = launch(tmp_path, 400, "linger")
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step "):
            break
    process.send_signal(signal.SIGUSR1)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 75, said
    saved = re.search(r"stopped on request and saved after step (\d+)", said)
    assert saved, said
    step = int(saved[1])
    assert (tmp_path / "state" / f"step{step:08d}.json").exists()
    assert step < 400
    again, _ = finished(tmp_path, step + 2)
    assert same_weights(again, train_on_ranks(tmp_path / "whole", "dpar", 2, until=step + 2))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["hang", "freeze", "hang until asked"])
def test_a_rank_that_hangs_ends_all_is_named_and_costs_no_bit(tmp_path, what):
    process = launch(tmp_path, 8, what)
    assert process.stderr is not None
    said = ""
    if what == "hang until asked":
        for line in process.stderr:
            said += line
            if "rank 1 hangs" in line:
                break
        process.send_signal(signal.SIGTERM)
    said += process.communicate(timeout=300)[1]
    assert process.returncode == 75, said
    place = ".*" if what == "freeze" else "the forward pass of micro-batch 1/1 of step 5"
    assert re.search(f"error: rank 1 of 2 did not get past {place}: it hangs", said)
    assert said.count("it hangs") == 1
    again, _ = finished(tmp_path, 8)
    assert same_weights(again, train_on_ranks(tmp_path / "whole", "dpar", 2, until=8))
