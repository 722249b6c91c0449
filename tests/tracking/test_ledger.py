import json
from pathlib import Path

from dpar.tracking.environment import machine
from dpar.tracking.ledger import Ledger, is_running, read_events, spool_key, spools


def test_whoever_made_a_file_last_is_its_producer(results: Path, job):
    def write(name: str, content: str) -> None:
        with job("make", name=name, outputs=("x.txt",), params={"content": content}):
            (results / "x.txt").write_text(content)

    write("first", "a")
    old = Ledger(results).manifests[0].outputs[0].sha256
    write("second", "b")
    write("third", "b")
    ledger = Ledger(results)
    new = ledger.manifests[-1].outputs[0].sha256
    assert [manifest.name for manifest in ledger.manifests] == ["first", "second", "third"]
    for path, sha256, maker in (("x.txt", old, "first"), ("x.txt", new, "third"), ("copy.txt", old, "first")):
        found = ledger.producer(path, sha256)
        assert found is not None
        assert found.name == maker
    assert ledger.producer("x.txt", "0" * 64) is None
    latest = ledger.latest("x.txt")
    assert latest is not None
    assert latest.name == "third"
    assert ledger.latest("y.txt") is None


def test_a_state_that_is_written_again_without_a_step_is_that_of_the_job_that_trained_it(results: Path, job):
    def train(name: str, content: str, *commits: int) -> None:
        with job("train_model", name=name, outputs=("weights",), params={"name": name}) as running:
            (results / "weights").write_text(content)
            for step in commits:
                running.commit(step)

    train("first", "a", 0, 4)
    train("written again", "a")
    (artefact,) = Ledger(results).manifests[0].outputs
    assert [maker.name for maker in Ledger(results).producers(artefact)] == ["first"]
    latest = Ledger(results).latest("weights")
    assert latest is not None
    assert latest.name == "written again"
    train("trained again", "a", 0, 4)
    assert [maker.name for maker in Ledger(results).producers(artefact)] == ["trained again"]
    train("other", "b")
    (artefact,) = Ledger(results).manifests[-1].outputs
    assert [maker.name for maker in Ledger(results).producers(artefact)] == ["other"]


def test_files_of_a_folder_lead_to_the_job_that_made_the_folder(results: Path, job):
    with job("train", outputs=("model",)):
        (results / "model").mkdir()
        (results / "model" / "weights").write_text("w")
    with job("sample", inputs=("model/weights",)):
        pass
    with job("export", inputs=("model",)):
        pass
    ledger = Ledger(results)
    for manifest in ledger.manifests[1:]:
        assert [maker.rule for maker in ledger.producers(manifest.inputs[0])] == ["train"]


def test_lines_that_are_no_events_are_left_out(results: Path, job):
    with job("train"):
        pass
    (spool,) = spools(results)
    whole = list(read_events(spool))
    with open(spool / "events.jsonl", "ab") as file:
        file.write(b'\x00\xff\n[1]\n"text"\n{"t": 5}\n\n' + json.dumps({"t": 9, "event": "note"}).encode())
    assert list(read_events(spool)) == whole
    assert spool_key(spool) == f"train/{spool.name}@{whole[0]['t']}"


def test_whether_a_job_runs_is_known_on_its_own_host_only(results: Path, job):
    here = machine()["host"]
    with job("train"):
        (spool,) = spools(results)
        assert is_running(spool, here) is True
        assert is_running(spool, "elsewhere") is True
    assert is_running(spool, here) is False
    assert is_running(spool, "elsewhere") is None
