"""Requests to Slurm, with programs of its names that say what a Slurm would."""

import math
import stat

import pytest

from dpar.errors import InputError
from dpar.workflow.slurm import check_partitions, claim_jobs, longest_jobs, minutes, start_again


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Puts a shell script of the given name on the PATH, on which nothing else is."""
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    (tmp_path / "bin").mkdir()

    def write(name, text):
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return write


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("30:00", 30), ("1:00", 1), ("0:30", 0.5), ("12:00:00", 720), ("2-00:00:00", 2880), ("infinite", math.inf)],
)
def test_a_time_limit_in_minutes(limit, expected):
    assert minutes(limit) == expected


def test_what_is_no_time_limit_is_refused():
    with pytest.raises(ValueError, match="soon"):
        minutes("soon")


def test_a_partition_that_is_not_there_is_named_with_those_that_are(program):
    program("sinfo", "echo 'short 1:00:00'; echo 'long infinite'")
    longest = longest_jobs()
    assert longest == {"short": 60, "long": math.inf}
    check_partitions([("a", "short", 60), ("b", "long", 10000)], longest)
    with pytest.raises(InputError, match=r"rule b asks for the partition gpu, .* it has short, long"):
        check_partitions([("a", "short", 60), ("b", "gpu", 60)], longest)


def test_a_job_longer_than_its_partition_allows_is_refused():
    with pytest.raises(InputError, match=r"rule a asks for 61 minutes .* 60: it would wait for ever"):
        check_partitions([("a", "short", 61)], {"short": 60})


def test_what_a_site_leaves_to_slurm_is_not_checked():
    check_partitions([("a", None, 1e9), ("b", "", None), ("c", "short", None)], {"short": 60})


def test_no_scheduler_on_the_path(program):
    with pytest.raises(InputError, match="no Slurm here: sinfo is not on the PATH"):
        longest_jobs()


def test_a_scheduler_that_does_not_answer(program):
    program("sinfo", "echo 'slurm_load_partitions: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(InputError, match=r"`sinfo .*` failed: slurm_load_partitions: Unable to contact"):
        longest_jobs()


def test_jobs_of_the_run_before_must_have_ended(program, tmp_path):
    record = tmp_path / "slurm_run"
    program("squeue", "exit 1")  # not asked the first time
    claim_jobs(record, "dpar-1")
    program("squeue", "echo '7 dpar-1_uuid'; echo '8 dpar-2_uuid'; echo '9 dpar-1_uuid'")
    with pytest.raises(InputError, match=r"killed: 7 9\..*`scancel 7 9`"):
        claim_jobs(record, "dpar-3")
    assert record.read_text() == "dpar-1"
    program("squeue", "echo '8 dpar-2_uuid'")
    claim_jobs(record, "dpar-3")
    assert record.read_text() == "dpar-3"


def test_a_running_job_starts_again_and_one_that_is_being_stopped_does_not(program, tmp_path):
    asked = tmp_path / "asked"
    program("scontrol", f'echo "$*" >> {asked}')
    for state in ("COMPLETING", "PENDING", ""):
        program("squeue", f"echo {state}")
        assert "is not asked" in start_again("7")
    assert not asked.exists()
    program("squeue", "echo RUNNING")
    assert "goes back into Slurm's queue" in start_again("7")
    assert asked.read_text() == "requeue 7\n"


def test_a_requeue_that_is_not_allowed_is_said(program):
    program("squeue", "echo RUNNING")
    program("scontrol", "echo 'Requested operation is presently disabled' >&2; exit 1")
    assert "was not put back" in (said := start_again("7"))
    assert "presently disabled" in said
