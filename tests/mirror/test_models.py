"""From a run of the dashboard to the model that it has trained, drawn from or measured."""

from pathlib import Path

import pytest

from dpar.errors import InputError
from dpar.mirror import sync as mirror
from dpar.mirror.models import model_of_run
from dpar.mirror.store import Store


@pytest.fixture
def runs(results: Path, store: Store, job, query) -> dict[str, str]:
    """Name -> id of the runs of two models, samples and metrics of one, a comparison of both, and a table."""
    with job("train_tokenizer", outputs=("tokenizer",)):
        (results / "tokenizer").mkdir()
        (results / "tokenizer" / "model.safetensors").write_text("tokenizer")
    for model, before in (("a", ()), ("b", ("models/a",))):
        inputs = ("tokenizer", *before)
        with job("train_model", name=f"train_model[{model}]", inputs=inputs, outputs=(f"models/{model}",)):
            (results / "models" / model).mkdir(parents=True)
            (results / "models" / model / "model.safetensors").write_text(model)
    with job("sample_images", inputs=("models/b", "tokenizer"), outputs=("samples.npz",)):
        (results / "samples.npz").write_text("samples")
    with job("compute_metrics", inputs=("samples.npz",), outputs=("metrics.json",)):
        (results / "metrics.json").write_text("{}")
    with job("plot_compute", inputs=("models/a", "models/b"), outputs=("figure.png",)):
        (results / "figure.png").write_text("figure")
    with job("make_table", inputs=("metrics.json",)) as running:
        running.result(table="t", cell="row", params={}, metrics={"fid": 2}, sources=[results / "metrics.json"])
    mirror.sync(store)
    return dict(query("select name, run_uuid from runs where lifecycle_stage = 'active'"))


def test_a_run_leads_to_its_model(runs, store: Store, results: Path):
    expected = {"train_model[a]": "a", "train_model[b]": "b"}  # b, and not the milestone it went on from
    expected |= dict.fromkeys(("sample_images", "compute_metrics", "make_table", "row"), "b")
    for run, model in expected.items():
        assert model_of_run(store, runs[run]) == results / "models" / model
    for run, message in (
        ("train_tokenizer", r"\(train_tokenizer\) is about no trained model; give a model folder instead"),
        ("plot_compute", r"\(plot_compute\) is about models/a, models/b; give a model folder instead"),
        ("nowhere", r"nowhere is neither a model folder nor a run of sqlite"),
    ):
        with pytest.raises(InputError, match=message):
            model_of_run(store, runs.get(run, run))
