import base64
import json
import zlib
from pathlib import Path

import pytest
from PIL import Image

from dpar.mirror import sync as mirror
from dpar.mirror import views
from dpar.mirror.store import Store, open_store


def state_of(query, experiment: str, name: str) -> dict:
    """A saved view as MLflow's page reads it."""
    rows = query(
        "select value from experiment_tags join experiments using (experiment_id)"
        " where name = ? and key like 'mlflow.sharedViewState.%'",
        experiment,
    )
    (envelope,) = [found for (value,) in rows if (found := json.loads(value))["name"] == name]
    assert isinstance(envelope["createdAt"], int)
    method, packed = envelope["state"].split(";")
    assert method == "deflate"
    return json.loads(zlib.decompress(base64.b64decode(packed)))


@pytest.fixture
def table(results: Path, job) -> None:
    """A table of four rows, one of them without a threshold."""
    with job("make_table") as running:
        for number, (model, threshold) in enumerate((("dpar", 2.0), ("dpar", 3.0), ("dpar", 4.0), ("llamagen", None))):
            params = {"model": model, "images": 500, "cell": f"c{number}"}
            length = 2 * number + 2
            lengths = {"max_length": length, "patchify.max_length": length}  # the second is what the first was set by
            params |= {} if threshold is None else {"threshold": threshold, **lengths}
            metrics = {"eval/frechet_distance": 10 - number, "eval/frechet_distance_sd": 0.1, "val/nll": 3.0}
            metrics |= {"cost/sampling_gmacs": 3.0, "cost/training_gmacs": 5.0, "paper/fid": 2.5}
            running.result(table="t", cell=f"c{number}", params=params, metrics=metrics)


def test_the_table_of_results_shows_what_varies_then_the_best_metric_best_first(table, store: Store, query):
    mirror.sync(store)
    state = state_of(query, "dpar/demo/results", "1 Every row, best first")
    assert state["orderByKey"] == "metrics.`eval/frechet_distance`"
    assert state["orderByAsc"] is True
    assert state["searchFilter"] == "tags.`dpar.kind` = 'cell'"
    assert state["columnOrder"] == [
        "params.`model`",
        "params.`threshold`",
        "params.`max_length`",
        "metrics.`eval/frechet_distance`",
        "metrics.`eval/frechet_distance_sd`",
        "metrics.`cost/training_gmacs`",
        "metrics.`cost/sampling_gmacs`",
        "metrics.`val/nll`",
        "metrics.`paper/fid`",
        "params.`table`",
        "params.`images`",
        "tags.`dpar.commit`",
    ]


def test_the_charts_show_quality_over_threshold_and_length_and_against_cost(table, store: Store, query):
    mirror.sync(store)
    state = state_of(query, "dpar/demo/results", "2 What decides quality and cost")
    cards = {card["type"]: card for card in state["compareRunCharts"]}
    assert cards.keys() == {"BAR", "SCATTER", "CONTOUR", "PARALLEL"}
    assert [cards["CONTOUR"][axis]["key"] for axis in ("xaxis", "yaxis", "zaxis")] == [
        "threshold",
        "max_length",
        "eval/frechet_distance",
    ]
    assert state["orderByAsc"] is False, "cards of pictures begin with the last row"
    assert cards["PARALLEL"]["selectedParams"] == ["threshold", "max_length"]
    assert cards["SCATTER"]["xaxis"]["key"] == "cost/training_gmacs"
    sections = {section["uuid"] for section in state["compareRunSections"]}
    assert {card["metricSectionId"] for card in state["compareRunCharts"]} == sections


def test_every_view_has_an_address_and_views_of_empty_experiments_have_none(table, store: Store, job):
    mirror.sync(store)
    client = open_store(store)
    assert [title for title, _ in views.addresses(client)] == [
        "dpar/demo/results: 1 Every row, best first",
        "dpar/demo/results: 2 What decides quality and cost",
        "dpar/demo/pipeline: 1 All jobs",
    ]
    with job("train_model") as running:
        running.metrics({"train/loss": 1.0, "perf/step_ms": 2.0}, step=1)
    mirror.sync(store)
    found = dict(views.addresses(client))
    assert "compareRunsMode=CHART" in found["dpar/demo/train: 2 Curves and pictures"]
    assert all("workflowType=machine_learning&viewStateShareKey=" in address for address in found.values())


def test_views_fit_into_a_tag_even_with_many_metrics(results: Path, store: Store, job, query):
    with job("train_model") as running:
        running.metrics({f"train/metric_{number}": number for number in range(60)}, step=1)
    mirror.sync(store)
    longest = max(len(value) for (value,) in query("select value from experiment_tags"))
    assert longest < 20_000
    cards = state_of(query, "dpar/demo/train", "2 Curves and pictures")["compareRunCharts"]
    assert len(cards) == 60


def test_pictures_stand_by_step_and_open_at_the_last(results: Path, store: Store, job, query):
    Image.new("RGB", (8, 8)).save(results / "grid.png")
    for rule, key, last in (("train_model", "samples", 30), ("train_tokenizer", "reconstructions", 20)):
        with job(rule) as running:
            for step in range(10, last + 1, 10):
                running.image(results / "grid.png", key=key, step=step)
    mirror.sync(store)
    cards = state_of(query, "dpar/demo/train", "2 Curves and pictures")["compareRunCharts"]
    shown = [(card["displayName"], card["imageKeys"], card["step"]) for card in cards if card["type"] == "IMAGE"]
    assert shown == [("Samples", ["samples"], 30), ("Reconstructions", ["reconstructions"], 20)]
    sections = state_of(query, "dpar/demo/train", "2 Curves and pictures")["compareRunSections"]
    heights = {section["name"]: section.get("cardHeight") for section in sections}
    assert heights["Pictures by step"] == 1000, "room for several runs with their names"
