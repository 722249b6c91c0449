"""The linear probe of a trained model: better than chance on codes that name their class, and its conditions."""

import json

import pytest

from dpar.data.codes import open_codes
from dpar.errors import InputError
from dpar.stages import linear_probe, train_model
from dpar.weights import model_config, save_model
from tests.train.tiny import CLASSES, IMAGES, Results, code_rows, tiny_task, write_codes


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("DPAR_CACHE", str(tmp_path / "cache"))
    return Results.make(tmp_path / "tiny")


def run(results, model, **replaced):
    paths = {
        "experiment": results.folder / "experiment.json",
        "model-folder": results.folder / "models" / model / "step8",
        "train": results.folder / "scored" / "train/manifest.json",
        "val": results.folder / "scored" / "val/manifest.json",
        "output": results.folder / "linear_probe" / model / "step8.json",
    } | replaced
    linear_probe.main([word for name, path in paths.items() for word in (f"--{name}", str(path))])
    return json.loads(paths["output"].read_text())


@pytest.mark.parametrize("model", ["dpar", "llamagen"])
def test_it_measures_a_trained_model_on_held_out_images(results, model):
    train_model.main(results.train_model(model))
    found = run(results, model)
    assert found["top1"] > 200 / CLASSES, "chance is 100 / CLASSES; the tokens of these codes name the class"
    assert found["top1_training"] >= found["top1"] - 20
    assert "top5" not in found, "of three classes"
    stated = found["conditions"]
    assert (stated["training_images"], stated["val_images"], stated["dims"]) == (IMAGES, 6, 32)
    assert (stated["penalty"], stated["iterations"], stated["seed"]) == (1e-4, 200, 0)
    assert stated["training_views"] == "one an image, drawn at random"
    assert stated["model"] == model_config(results.folder / "models" / model / "step8")["sha256"]
    assert stated["train_codes"] == open_codes(results.folder / "scored/train/manifest.json").digest
    assert run(results, model) == found


def test_codes_of_another_tokenizer_and_models_without_classes_are_refused(results, tmp_path):
    train_model.main(results.train_model("dpar"))
    rows = code_rows(1, images=6, views=1)
    other = rows.metadata.model_copy(update={"tokenizer": "0" * 64})
    manifest = write_codes(tmp_path / "other", type(rows)(**(vars(rows) | {"metadata": other})))
    with pytest.raises(InputError, match="tokenizer"):
        run(results, "dpar", val=manifest)
    folder = tmp_path / "unconditional"
    made = model_config(results.folder / "models/dpar/step8")["provenance"] | {"patchify": None}
    save_model(folder, tiny_task("unconditional").model, made)
    with pytest.raises(InputError, match="is a model without classes"):
        run(results, "dpar", **{"model-folder": folder})
    assert not (results.folder / "linear_probe").exists()
