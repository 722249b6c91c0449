import subprocess
from pathlib import Path

import pytest

from dpar.tracking import environment


def test_the_commit_is_that_of_the_packages_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    package = tmp_path / "dpar" / "tracking"
    package.mkdir(parents=True)
    (package / "environment.py").touch()
    monkeypatch.setattr(environment, "__file__", str(package / "environment.py"))
    assert environment.git_commit() == (None, False)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.example"]
    for arguments in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)
    commit, dirty = environment.git_commit()
    assert commit is not None
    assert len(commit) == 40
    assert not dirty
    (package / "environment.py").write_text("changed")
    (tmp_path / "untracked").touch()
    assert environment.git_commit() == (commit, True)


def test_the_machine_and_the_versions_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert environment.machine().keys() - {"gpus"} == {"host", "user", "processor", "slurm_job_id"}
    assert environment.machine()["slurm_job_id"] == "77"
    assert {"python", "torch", "numpy"} <= environment.versions().keys()
