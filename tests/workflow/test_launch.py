"""How a training stage is started for the resources it was given."""

import os
import signal
import subprocess
import sys

import pytest

from dpar.errors import InputError
from dpar.workflow.launch import command


def start(*, gpus=0, nodes=1, cpus=1, job=None, arguments=("--a", "b c")):
    return command("m", arguments, gpus=gpus, nodes=nodes, cpus=cpus, job=job)


def test_one_process_without_or_with_one_gpu():
    for gpus in (0, 1):
        assert start(gpus=gpus) == [sys.executable, "-m", "m", "--a", "b c"]


def test_torchrun_on_one_node():
    line = start(gpus=8)
    assert line[1:4] == ["-m", "dpar.workflow.torchrun", "--nproc-per-node=8"]
    assert line[-5:] == ["--standalone", "-m", "m", "--a", "b c"]


def test_srun_starts_one_torchrun_a_node_with_its_part_of_the_job():
    line = start(gpus=16, nodes=2, cpus=64, job="7")
    assert line[:5] == ["srun", "--nodes=2", "--ntasks=2", "--cpus-per-task=64", "--gres=gpu:8"]
    shown = subprocess.run(
        ["bash", "-c", line[-1].replace("exec ", "printf '%s\\n' ", 1)],
        env={"SLURM_NODEID": "1", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7"}, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    assert shown[:4] == [sys.executable, "-m", "dpar.workflow.torchrun", "--nproc-per-node=8"]
    assert {"--nnodes=2", "--node-rank=1", "--master-addr=10.0.0.7"} <= set(shown)
    assert shown[-4:] == ["-m", "m", "--a", "b c"]


def test_jobs_that_share_a_node_meet_at_ports_of_their_own():
    lines = {start(gpus=2, nodes=2, job=str(job))[-1] for job in range(100, 104)}
    assert len(lines) == 4


def test_what_cannot_be_started_is_refused():
    for gpus in (0, 3):
        with pytest.raises(InputError, match="divided over 2 nodes"):
            start(gpus=gpus, nodes=2, job="7")
    with pytest.raises(InputError, match="at least one node"):
        start(gpus=2, nodes=0)
    with pytest.raises(InputError, match="Slurm allocation"):
        start(gpus=4, nodes=2)


THEIRS = {"SLURM_JOB_ID": "7"}
OURS = THEIRS | {"DPAR_SLURM_RUN": "dpar-1"}


@pytest.mark.parametrize(
    ("status", "requeued", "job"),
    [(0, False, OURS), (1, False, OURS), (75, True, OURS), (75, False, THEIRS)],
)
def test_in_a_slurm_job_a_training_that_saved_on_request_starts_again(tmp_path, status, requeued, job):
    """Its state of 75 is kept, and the signal that asked for it does not end the launcher, which got it too.

    A job in which somebody works, and runs a training by hand, is not put back into the queue.
    """
    (tmp_path / "stage.py").write_text(
        "import signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: sys.exit({status}))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    for name, text in (("squeue", "echo RUNNING"), ("scontrol", 'echo "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text} >> {tmp_path}/asked; echo RUNNING\n")
        (tmp_path / name).chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    imports = os.pathsep.join([str(tmp_path), os.getcwd()])
    launched = subprocess.Popen(
        [sys.executable, "-m", "dpar.workflow.launch", "stage"],
        env={**os.environ, **job, "PATH": path, "PYTHONPATH": imports},
        stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert launched.stdout is not None
    assert launched.stdout.readline() == b"ready\n"
    os.killpg(launched.pid, signal.SIGTERM)
    assert launched.wait(60) == status
    asked = tmp_path / "asked"
    assert (asked.exists() and "requeue 7" in asked.read_text()) == requeued


def test_a_training_that_was_killed_in_a_slurm_job_ends_as_a_shell_would_say_it(tmp_path):
    (tmp_path / "stage.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    imports = os.pathsep.join([str(tmp_path), os.getcwd()])
    run = subprocess.run(
        [sys.executable, "-m", "dpar.workflow.launch", "stage"],
        env={**os.environ, **OURS, "PYTHONPATH": imports}, timeout=60,
    )  # fmt: skip
    assert run.returncode == 137
