"""Space and memory that a run needs, compared with what is there."""

import shutil
from collections import namedtuple

import pytest

from dpar.experiment.loading import load_experiment, parse_experiment
from dpar.workflow import room
from dpar.workflow.planning import Data
from tests.experiment.test_settings import CONFIG, demo

Usage = namedtuple("Usage", "total used free")
DATA = Data(1600, 640, {})


def keys(experiment, tmp_path, **options):
    return {problem.key for problem in room.problems(experiment, tmp_path / "results" / "demo", DATA, **options)}


def test_the_demo_fits(tmp_path):
    assert keys(load_experiment(CONFIG / "demo.yaml"), tmp_path) == set()


@pytest.mark.parametrize(("free", "named"), [(0, {"results", "DPAR_CACHE"}), (10**6, {"results", "DPAR_CACHE"})])
def test_too_small_disks_are_named_with_what_is_needed(tmp_path, monkeypatch, free, named):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, free))
    experiment = load_experiment(CONFIG / "demo.yaml")
    assert keys(experiment, tmp_path) == named
    (first, _) = room.disk(experiment, tmp_path / "results", DATA)
    assert str(first).startswith(f"results: found {free // 10**6} MB free for ")
    assert "by the plan" in str(first)


def test_what_is_there_already_needs_no_more_room(tmp_path, monkeypatch):
    experiment = load_experiment(CONFIG / "demo.yaml")
    results = tmp_path / "results" / "demo"
    results.mkdir(parents=True)
    (results / "made").write_bytes(bytes(10))
    with open(results / "made", "r+b") as file:
        file.truncate(10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 0))
    assert keys(experiment, tmp_path) == {"DPAR_CACHE"}


def test_a_training_that_no_memory_holds_is_named_and_accumulation_helps(tmp_path, monkeypatch):
    values = demo(models__dpar={"variant": "DPAR-XL"}, training__batch_size=256)
    monkeypatch.setattr(room, "memory_here", lambda: (40e9, "a card"))
    experiment = parse_experiment(values, "test")
    assert "models.dpar" in keys(experiment, tmp_path)
    assert "models.dpar" not in keys(experiment, tmp_path, here=False)
    (problem,) = room.memory(experiment)
    assert "at most the 40.0 GB of a card" in str(problem)
    values["training"] = {**values["training"], "accumulate": 64}
    assert [*room.memory(parse_experiment(values, "test"))] == []
