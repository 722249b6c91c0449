"""How a training stage is started for the resources it was given."""

import sys

import pytest

from dpar.errors import InputError
from dpar.launch import command


def test_one_process_without_or_with_one_gpu():
    for gpus in (0, 1):
        assert command("m", ["--a"], gpus=gpus, nodes=1, environment={}) == [sys.executable, "-m", "m", "--a"]


def test_torchrun_on_one_node():
    line = command("m", ["--a"], gpus=8, nodes=1, environment={})
    assert line[1:4] == ["-m", "dpar.train.torchrun", "--nproc-per-node=8"]
    assert line[-4:] == ["--standalone", "-m", "m", "--a"]


def test_srun_starts_one_torchrun_a_node():
    line = command("m", ["--a", "b c"], gpus=16, nodes=2, environment={"SLURM_JOB_ID": "7", "HEAD_NODE": "n1"})
    assert line[:4] == ["srun", "--nodes=2", "--ntasks=2", "--gres=gpu:8"]
    assert "-m dpar.train.torchrun --nproc-per-node=8" in line[-1]
    assert "--rdzv-endpoint=n1:29500" in line[-1]
    assert "'b c'" in line[-1]


def test_what_cannot_be_started_is_refused():
    with pytest.raises(InputError, match="divided over 2 nodes"):
        command("m", [], gpus=3, nodes=2, environment={"SLURM_JOB_ID": "7"})
    with pytest.raises(InputError, match="divided over 2 nodes"):
        command("m", [], gpus=0, nodes=2, environment={"SLURM_JOB_ID": "7"})
    with pytest.raises(InputError, match="at least one node"):
        command("m", [], gpus=2, nodes=0, environment={})
    with pytest.raises(InputError, match="Slurm allocation"):
        command("m", [], gpus=4, nodes=2, environment={})
