"""What a command says of a disk that is full, however libraries wrap it."""

import errno
import os
import sqlite3
import subprocess
import sys

import numpy as np
import pytest

from dpar.errors import InputError, refusal_of_disk, run_command

FULL = "/dev/full"


def by_the_system():
    with open(FULL, "w") as file:
        file.write("x" * 100_000)


def by_numpy():
    with open(FULL, "wb", buffering=0) as file:
        np.zeros(100_000).tofile(file)


def by_sqlite():
    raise sqlite3.OperationalError("database or disk is full")


def by_something_that_was_told_of_it():
    try:
        by_the_system()
    except OSError as error:
        raise RuntimeError("the archive was not written") from error


def by_safetensors():
    raise ValueError("Error while serializing: I/O error: No space left on device (os error 28)")


def by_a_quota():
    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "results/a.json")


@pytest.mark.parametrize(
    "write",
    [by_the_system, by_numpy, by_sqlite, by_something_that_was_told_of_it, by_safetensors, by_a_quota],
)
def test_a_full_disk_is_one_line_with_a_way_on(write, capsys):
    assert run_command(lambda _: write()) == 3
    said = capsys.readouterr().err
    assert said.startswith("error: no space left")
    assert said.endswith("free some space and run the same command again\n")
    assert said.count("\n") == 1


def test_other_errors_of_the_system_are_one_line_and_bugs_are_not_hidden(capsys):
    assert run_command(lambda _: os.stat("/nowhere/at/all")) == 3
    assert "No such file or directory (/nowhere/at/all)" in capsys.readouterr().err
    with pytest.raises(KeyError):
        run_command(lambda _: {}["a"])
    said = refusal_of_disk(sqlite3.OperationalError("database or disk is full\n[SQL: CREATE TABLE a]"))
    assert said is not None
    assert said.startswith("no space left: database or disk is full; nothing half-written")
    assert "SQL" not in said
    assert refusal_of_disk(KeyError("a")) is None
    assert refusal_of_disk(InputError("a")) is None


def test_output_that_finds_no_space_is_no_traceback():
    code = "from dpar.errors import run_command; import sys; sys.exit(run_command(lambda _: print('x' * 100)))"
    with open(FULL, "w") as full:
        run = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True)
    assert run.returncode == 3
    assert run.stderr.startswith("error: no space left")
    assert "Traceback" not in run.stderr
    assert "Exception" not in run.stderr
    with open(FULL, "w") as full:
        assert subprocess.run([sys.executable, "-c", code], stdout=full, stderr=full).returncode == 3


def test_ctrl_c_is_one_line(capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    assert run_command(interrupted) == 130
    assert capsys.readouterr().err == "interrupted: nothing half-written is left behind\n"
