"""Which run `dpar status` tells of."""

from collections import Counter

import pytest

from dpar.commands import status
from dpar.errors import InputError
from dpar.workflow import journal


def test_it_is_the_run_that_began_last_whose_journal_is_read_once(tmp_path, capsys, monkeypatch):
    for name in ("z", "b", "a.smoke"):
        journal.begin(tmp_path / "results" / name, {"train_model": 1})
        journal.write(tmp_path / "results" / name, "ended", how="done")
    read, original = Counter(), journal.read
    monkeypatch.setattr(journal, "read", lambda results: (read.update([results.name]), original(results))[1])
    status.main(["--directory", str(tmp_path)])
    assert capsys.readouterr().out.startswith(f"{tmp_path}/results/a.smoke, a smoke: its numbers say nothing\ndone: ")
    assert read == {"z": 1, "b": 1, "a.smoke": 1}
    status.main(["--results", str(tmp_path / "results" / "b")])
    assert capsys.readouterr().out.startswith(f"{tmp_path}/results/b\ndone: 0 of 1 jobs")


def test_it_says_what_finished_jobs_warn_of_once(tmp_path, capsys):
    results = tmp_path / "results" / "a"
    journal.begin(results, {"index_images": 2})
    for job in range(2):
        (tmp_path / f"{job}.log").write_text("warning: few images\ndone\n")
        journal.write(results, "started", job=job, name=f"index_images {job}", log=[f"{job}.log"])
        journal.write(results, "finished", job=job)
    status.main(["--results", str(results)])
    assert capsys.readouterr().out.splitlines()[-1] == "warning: index_images 0: few images"


def test_without_a_run_it_says_where_it_looked(tmp_path):
    with pytest.raises(InputError, match=f"no run has left a journal in {tmp_path}/results; .* --directory"):
        status.main(["--directory", str(tmp_path)])
    with pytest.raises(InputError, match=f"no run has left a journal in {tmp_path}/results/demo.smoke"):
        status.main(["--directory", str(tmp_path), "--smoke"])
