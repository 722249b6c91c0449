import json
from pathlib import Path

import pytest

from dpar import tracking
from dpar.commands import lineage
from dpar.errors import InputError


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results of a job that made a file and a row."""
    monkeypatch.chdir(tmp_path)
    folder = Path("results/demo")
    folder.mkdir(parents=True)
    (folder / "experiment.json").write_text(json.dumps({"name": "demo"}))
    with tracking.job(rule="make_table", experiment=folder / "experiment.json", outputs=[folder / "t.csv"]) as job:
        (folder / "t.csv").write_text("fid\n2\n")
        job.result(table="t", cell="a", params={}, metrics={"fid": 2}, sources=[folder / "t.csv"])
    return folder


def test_a_file_and_a_row_are_told_apart(results: Path, capsys: pytest.CaptureFixture):
    lineage.main([str(results / "t.csv")])
    assert "t.csv  sha256 " in capsys.readouterr().out
    lineage.main(["t:a"])
    assert "t:a\n  fid = 2\n" in capsys.readouterr().out
    lineage.main(["t:a", "--results", str(results)])
    assert "<- make_table" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"none\.csv does not exist"):
        lineage.main([str(results / "none.csv")])
