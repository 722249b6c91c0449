"""Records that were damaged: each fault is named, and everything else is read and shown."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dpar.commands import lineage, track
from dpar.errors import run_command
from dpar.mirror import status
from dpar.mirror import sync as mirror
from dpar.mirror.store import Store, find_store
from dpar.tracking.events import _FIELDS
from dpar.tracking.ledger import Ledger, read_events, spools
from dpar.tracking.replay import replay

WRONG: list[Any] = [None, True, -1, 1.5, 10**30, "x", "\ud800", [], [0], {}, {"x": None}, {"x": []}]


@pytest.fixture
def spool(results: Path, job) -> Path:
    """The record of a job that said everything a job can say."""
    Image.new("RGB", (4, 4)).save(results / "grid.png")
    params = {"text": "a", "channels": [1, 2], "model": {"width": 8, "gate": None, "rates": [0.5]}, "flag": True}
    with job("make_table", inputs=("grid.png",), outputs=("a.json",), params=params) as running:
        (results / "a.json").write_text("{}")
        running.metrics({"train/loss": float("nan")}, step=1)
        running.commit(1)
        running.image(results / "grid.png", key="samples", step=1)
        running.figure(results / "grid.png")
        running.note("what it is")
        running.tags({"key": "value"})
        running.summary({"val/nll": 1.0})
        running._append("system", values={"system/cpu": 1.0})
        source, image = results / "a.json", results / "grid.png"
        running.result(table="t", cell="c", params={"a": 1}, metrics={"b": 2}, sources=[source], image=image)
    (found,) = spools(results)
    return found


def events_of(spool: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (spool / "events.jsonl").read_text().splitlines()]


def write(spool: Path, events: list[dict[str, Any]]) -> None:
    (spool / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def damaged(value: Any) -> Iterator[tuple[str, Any]]:
    """`value` with each key of it, and of what is in it, removed and of every other type, and what was done."""
    if isinstance(value, dict):
        for key in value:
            yield f"no {key}", {k: v for k, v in value.items() if k != key}
            yield from ((f"{key} = {wrong!r}", {**value, key: wrong}) for wrong in WRONG)
            yield from ((f"{key}: {what}", {**value, key: changed}) for what, changed in damaged(value[key]))
    elif isinstance(value, list) and value:
        yield from ((f"[0]: {what}", [changed, *value[1:]]) for what, changed in damaged(value[0]))


def test_the_fixture_says_everything(spool: Path):
    assert {event["event"] for event in events_of(spool)} == set(_FIELDS)
    problems: list[str] = []
    assert [*read_events(spool, problems)] == events_of(spool)
    assert problems == []


@pytest.mark.parametrize("kind", _FIELDS)
def test_an_event_that_lacks_something_is_left_out_and_named(results: Path, spool: Path, kind: str, capsys):
    whole = events_of(spool)
    number = next(number for number, event in enumerate(whole) if event["event"] == kind)
    named = 0
    for what, event in damaged(whole[number]):
        write(spool, [*whole[:number], event, *whole[number + 1 :]])
        problems: list[str] = []
        read = [*read_events(spool, problems)]
        replay(read)
        assert len(read) + len(problems) == len(whole), what
        assert all(f"events.jsonl, line {number + 1}, " in problem for problem in problems), what
        if what.startswith("no ") and what[3:] not in ("pid", "inputs"):
            assert len(problems) == 1, what
            named += 1
            said = status.report(find_store(results))
            assert f"left out: {problems[0]}" in said
            assert run_command(lineage.main, ["t:c", "--results", str(results)]) in (0, 2)
    assert named >= 3
    assert "Traceback" not in capsys.readouterr().err


def test_a_record_that_is_cut_anywhere_is_read_as_far_as_it_goes_and_named(results: Path, spool: Path):
    content = (spool / "events.jsonl").read_bytes()
    for length in range(1, len(content), 50):
        (spool / "events.jsonl").write_bytes(content[:length])
        said = status.report(find_store(results))
        assert "left out: " in said, length
        assert str(spool / "events.jsonl") in said


def test_bytes_that_changed_are_never_a_traceback(results: Path, spool: Path):
    content = (spool / "events.jsonl").read_bytes()
    for place in range(0, len(content), 7):
        (spool / "events.jsonl").write_bytes(content[:place] + bytes([content[place] ^ 0x15]) + content[place + 1 :])
        status.report(find_store(results))
        assert replay(read_events(spool)) is not None


def test_a_manifest_that_lacks_something_is_left_out_and_named(results: Path, spool: Path, job):
    with job("other", outputs=("b.json",)):
        (results / "b.json").write_text("{}")
    path = spool / "manifest.json"
    whole = json.loads(path.read_text())
    told = 0
    for what, manifest in [*damaged(whole), ("list", []), ("number", 5)]:
        path.write_text(json.dumps(manifest))
        known = [manifest.rule for manifest in Ledger(results).manifests]
        assert "other" in known, what
        if len(known) == 1:
            told += 1
            assert f"left out: {path}" in status.report(find_store(results)), what
    assert told > 50
    for length in range(0, path.stat().st_size, 50):
        path.write_text(json.dumps(whole)[:length])
        assert [manifest.rule for manifest in Ledger(results).manifests] == ["other"]


def test_a_sync_leaves_out_what_is_damaged_and_carries_everything_else(
    results: Path, store: Store, spool, query, capsys
):
    whole, manifest = events_of(spool), json.loads((spool / "manifest.json").read_text())
    harmed: list[Path] = []

    def copy(name: str) -> Path:
        harmed.append(spool.with_name(name))
        shutil.copytree(spool, harmed[-1])
        return harmed[-1]

    for number, event in enumerate(whole):
        write(copy(f"event{number}"), [*whole[:number], {"event": event["event"]}, *whole[number + 1 :]])
    content = (spool / "events.jsonl").read_bytes()
    for length in (50, len(content) // 2, len(content) - 5):
        (copy(f"cut{length}") / "events.jsonl").write_bytes(content[:length])
    for key in ("rule", "outputs", "started"):
        without = {k: v for k, v in manifest.items() if k != key}
        (copy(f"manifest-{key}") / "manifest.json").write_text(json.dumps(without))
    (copy("no-manifest") / "manifest.json").unlink()
    with pytest.raises(SystemExit) as ended:
        track.main(["sync", "--results", str(results)])
    said = capsys.readouterr().out
    assert ended.value.code == 1
    assert f", {said.count('problem: ')} records left out or not whole" in said
    for folder in harmed:
        assert f"problem: {folder}" in said
    assert f"problem: {spool}/" not in said
    assert query("select count(*) from tags where key = 'dpar.damaged'")[0][0] >= len(harmed) - 2
    finished = "select count(*) from runs where status = 'FINISHED' and name = 'make_table'"
    assert query(finished)[0][0] >= len(whole)
    again = mirror.sync(store)  # said as long as it is so
    assert again is not None
    assert len(again.problems) == said.count("problem: ")
