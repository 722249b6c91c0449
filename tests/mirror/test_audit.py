import re
from pathlib import Path

import pytest

from dpar.errors import InputError
from dpar.mirror import audit
from dpar.mirror import sync as mirror
from dpar.mirror.store import Store
from dpar.tracking.ledger import spools


@pytest.fixture
def outputs(results: Path, job) -> list[Path]:
    """A file and a folder that jobs have made."""
    with job("index", outputs=("index.json",)):
        (results / "index.json").write_text("{}")
    with job("train", outputs=("model",)):
        (results / "model").mkdir()
        (results / "model" / "weights").write_bytes(b"0123456789")
        (results / "model" / "config.json").write_text("{}")
    (results / "model" / ".snakemake_timestamp").touch()
    return [results / "index.json", results / "model"]


def verdicts(store: Store, outputs: list[Path]) -> dict[str, str]:
    return {Path(finding.file).name: finding.verdict for finding in audit.audit(store, outputs)}


def test_what_finished_jobs_made_is_tracked(outputs: list[Path], store: Store):
    mirror.sync(store)
    assert verdicts(store, outputs) == {"index.json": "tracked", "weights": "tracked", "config.json": "tracked"}


def test_a_changed_byte_is_found(outputs: list[Path], store: Store):
    mirror.sync(store)
    weights = outputs[1] / "weights"
    stat = weights.stat()
    weights.write_bytes(b"0123456788")
    import os

    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # even if size and time say that nothing happened
    found = audit.audit(store, outputs)
    (bad,) = [finding for finding in found if finding.verdict != "tracked"]
    assert (Path(bad.file).name, bad.verdict) == ("weights", "changed")
    assert "not what train made" in bad.detail
    assert "     1  changed" in audit.report(found)
    assert "changed: " in audit.report(found)


def test_a_file_no_job_has_made_is_found(outputs: list[Path], store: Store):
    mirror.sync(store)
    (outputs[1] / "extra.bin").write_text("smuggled in")
    assert verdicts(store, outputs)["extra.bin"] == "untracked"
    assert verdicts(store, [*outputs, outputs[0].with_name("never.json")])["never.json"] == "missing"


def test_a_job_that_did_not_finish_proves_nothing(outputs: list[Path], results: Path, store: Store, job):
    with pytest.raises(ValueError, match="late"), job("index", outputs=("index.json",)):
        raise ValueError("late")
    mirror.sync(store)
    assert verdicts(store, outputs)["index.json"] == "untracked"
    said = next(f.detail for f in audit.audit(store, outputs) if f.file.endswith("index.json"))
    assert re.search(
        r"index made it on [0-9: -]+; index, in its last run, did not end well \(ValueError: late\): ", said
    )
    outputs[0].write_text("[]")
    said = next(f.detail for f in audit.audit(store, outputs) if f.file.endswith("index.json"))
    assert "its bytes are others now" in said


def test_what_the_store_does_not_know_is_untracked(outputs: list[Path], store: Store, query):
    assert verdicts(store, outputs) == dict.fromkeys(("index.json", "weights", "config.json"), "untracked")
    assert "train made it on" in audit.report(audit.audit(store, outputs))
    assert "MLflow does not have that run: `dpar track sync`" in audit.report(audit.audit(store, outputs))
    mirror.sync(store)
    ((place,),) = query("select artifact_uri from runs where name = 'train'")
    Path(place.removeprefix("file://"), "provenance", "manifest.json").unlink()
    assert verdicts(store, outputs) == {"index.json": "tracked", "weights": "untracked", "config.json": "untracked"}


def test_lost_records_are_found_once_the_store_is_made_again(outputs: list[Path], results: Path, store: Store):
    import shutil

    shutil.rmtree(next(spool for spool in spools(results) if spool.parent.name == "train"))
    mirror.sync(store)
    assert verdicts(store, outputs) == {"index.json": "tracked", "weights": "untracked", "config.json": "untracked"}


def test_a_missing_store_is_explained(results: Path, monkeypatch: pytest.MonkeyPatch):
    from dpar.mirror.store import find_store

    monkeypatch.delenv("DPAR_TRACKING_URI", raising=False)
    with pytest.raises(InputError, match=r"mlflow\.db yet; run `dpar track sync`"):
        audit.audit(find_store(results), [])


SNAKEFILE = """
rule all:
    input: "a.txt", "folder"
rule a:
    output: "a.txt", temp("gone.txt")
    shell: "echo a > a.txt; echo > gone.txt"
rule folder:
    input: "a.txt"
    output: directory("folder")
    shell: "mkdir folder; echo x > folder/x.txt"
"""


@pytest.mark.parametrize("directory", [".", "elsewhere"])
def test_the_outputs_are_those_of_the_graph_where_it_was_run(tmp_path: Path, monkeypatch, directory: str):
    import subprocess
    import sys

    monkeypatch.chdir(tmp_path)
    Path("Snakefile").write_text(SNAKEFILE)
    Path("experiment.json").write_text("{}")
    snakemake = [sys.executable, "-m", "snakemake", "--quiet", "all", "--cores", "1", "--directory", directory]
    subprocess.run(snakemake, check=True, capture_output=True)
    found = audit.graph_outputs(Path("Snakefile"), Path("experiment.json"), Path(directory))
    assert sorted(found) == [Path(directory, "a.txt"), Path(directory, "folder")]
    assert all(path.exists() for path in found)


def test_a_graph_that_cannot_be_read_is_explained(tmp_path: Path):
    (tmp_path / "Snakefile").write_text("rule all:\n    input 3\n")
    (tmp_path / "experiment.json").write_text("{}")
    with pytest.raises(InputError, match="snakemake --summary"):
        audit.graph_outputs(tmp_path / "Snakefile", tmp_path / "experiment.json", tmp_path)
