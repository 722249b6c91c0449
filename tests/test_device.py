"""Which device a process takes, and batches of one shape."""

import os

import pytest
import torch

from dpar.device import default_device, pad_batch
from dpar.launched import LAUNCHER


def test_jobs_take_the_gpus_of_a_machine_in_turn(monkeypatch):
    assert default_device(3) == torch.device("cpu") or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [default_device(turn).index for turn in (0, 1, 4, 7)] == [0, 1, 0, 3]
    assert default_device().index == 0
    for name, value in {"RANK": "6", "LOCAL_RANK": "2", "WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    assert default_device(1).index == 1, "somebody else's"
    monkeypatch.setenv(LAUNCHER, str(os.getppid()))
    assert default_device(1).index == 2


@pytest.mark.parametrize("rows", [1, 3, 5])
def test_a_batch_is_filled_up_with_copies(rows):
    batch = torch.arange(rows * 6).reshape(rows, 2, 3)
    found = pad_batch(batch, 5)
    assert found.shape == (5, 2, 3)
    assert torch.equal(found[:rows], batch)
    assert (found[rows:] == batch[0]).all()
