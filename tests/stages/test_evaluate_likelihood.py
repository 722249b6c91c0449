"""The likelihood of held-out codes under a model folder: the number that training ended with."""

import math

import pytest

from dpar.errors import InputError
from dpar.files import read_json
from dpar.stages import evaluate_likelihood, train_model
from dpar.weights import model_config
from tests.train.tiny import VOCAB, Results, code_rows, history, write_codes


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("DPAR_CACHE", str(tmp_path / "cache"))
    return Results.make(tmp_path / "tiny")


def flags(results, model):
    paths = {
        "experiment": results.folder / "experiment.json",
        "model-folder": results.folder / "models" / model / "step8",
        "manifest": results.folder / "scored/val/manifest.json",
        "output": results.folder / "likelihood" / model / "step8.json",
    }
    return [word for name, path in paths.items() for word in (f"--{name}", str(path))]


@pytest.mark.parametrize("model", ["dpar", "llamagen"])
def test_it_is_what_validation_said_at_the_end(results, model):
    train_model.main(results.train_model(model))
    evaluate_likelihood.main(flags(results, model))
    found = read_json(results.folder / "likelihood" / model / "step8.json")
    folder = results.folder / "models" / model / "step8"
    assert found["nll"] == pytest.approx(history(folder)[8]["val/nll"], rel=1e-6)
    assert found["nll"] < math.log(VOCAB)
    assert (found["images"], found["tokens"], found["step"]) == (6, 96, 8)
    assert found["model"] == model_config(folder)["sha256"]
    if model == "dpar":
        assert 1 < found["mean_patch_length"] < 3
        assert found["threshold"] == 2.0
    else:
        assert found["mean_patch_length"] is None


@pytest.mark.parametrize("field", ["tokenizer", "entropy_model"])
def test_codes_of_something_else_are_refused_and_nothing_is_written(results, field):
    train_model.main(results.train_model("dpar"))
    rows = code_rows(1, images=6, views=1)
    other = rows.metadata.model_copy(update={field: "0" * 64})
    manifest = write_codes(results.folder / "other", type(rows)(**(vars(rows) | {"metadata": other})))
    with pytest.raises(InputError, match=field):
        evaluate_likelihood.main([*flags(results, "dpar"), "--manifest", str(manifest)])
    assert not (results.folder / "likelihood").exists()
