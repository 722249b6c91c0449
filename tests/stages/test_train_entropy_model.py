"""The entropy model's training stage: both kinds, and that its folder is complete."""

import pytest

from dpar.errors import InputError
from dpar.stages import train_entropy_model
from dpar.weights import load_model, model_config
from tests.train.tiny import CLASSES, Results, experiment_values, history


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("DPAR_CACHE", str(tmp_path / "cache"))
    return Results.make(tmp_path / "tiny")


@pytest.mark.parametrize(("kind", "classes"), [("unconditional", None), ("null_class", CLASSES)])
def test_it_learns_codes_without_patches(results, kind, classes):
    values = experiment_values()
    values["entropy_model"]["kind"] = kind
    results.set(values)
    train_entropy_model.main(results.train_entropy_model())
    folder = results.folder / "entropy_model"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "history.jsonl", "model.safetensors"]
    assert load_model(folder, "llamagen").config.num_classes == classes
    assert model_config(folder)["provenance"]["tokenizer"] == "f" * 64
    points = history(folder)
    assert points[8]["val/nll"] < points[4]["val/nll"]
    assert "patch/mean_length" not in points[8]


def test_an_experiment_that_imports_is_told_which_stage_to_run(results):
    values = experiment_values()
    values["entropy_model"] |= {"kind": "null_class", "training": None, "weights": "c2i_B_256.pt"}
    results.set(values)
    with pytest.raises(InputError, match="run import_entropy_model"):
        train_entropy_model.main(results.train_entropy_model())
