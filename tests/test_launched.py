"""The place among several processes, which only this program's launcher gives."""

import os

import pytest

from dpar.launched import LAUNCHER, Place, launched
from dpar.train.distributed import ranks

LEFT = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}


@pytest.mark.parametrize("launcher", [{}, {LAUNCHER: ""}, {LAUNCHER: "1234567"}])
def test_what_other_programs_left_in_the_environment_is_not_obeyed(monkeypatch, launcher):
    for name, value in (LEFT | launcher).items():
        monkeypatch.setenv(name, value)
    assert launched() is None
    with ranks() as here:  # which waits for nobody
        assert (here.rank, here.size, here.main) == (0, 1, True)


def test_the_launcher_is_obeyed_by_the_processes_that_it_started(monkeypatch):
    for name, value in (LEFT | {LAUNCHER: str(os.getppid())}).items():
        monkeypatch.setenv(name, value)
    assert launched() == Place(rank=3, local=1, size=4)
