"""The linear probe of a trained model: better than chance on codes that name their class, and its conditions."""

import numpy as np
import pytest
import torch

from dpar.data.codes import open_codes
from dpar.data.loader import epoch_views, sequential
from dpar.errors import InputError
from dpar.evaluation.linear_probe import describe_codes, fit_probe
from dpar.files import read_json
from dpar.patches.rule import PatchRule
from dpar.stages import linear_probe, train_model
from dpar.weights import load_model, model_config, save_model
from tests.train.tiny import CLASSES, IMAGES, Results, code_rows, tiny_task, write_codes

CPU = torch.device("cpu")


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
    return read_json(paths["output"])


@pytest.mark.parametrize("model", ["dpar", "llamagen"])
def test_it_measures_a_trained_model_on_held_out_images(results, model):
    train_model.main(results.train_model(model))
    found = run(results, model)
    assert found["top1"] > 200 / CLASSES, "chance is 100 / CLASSES; the tokens of these codes name the class"
    assert "top5" not in found, "among three classes it would say nothing"
    stated = found["conditions"]
    assert (stated["training_images"], stated["val_images"], stated["dims"]) == (IMAGES, 6, 32)
    assert (stated["penalty"], stated["iterations"], stated["seed"]) == (1e-4, 200, 0)
    assert stated["training_views"] == "one per image, drawn at random"
    assert stated["model"] == model_config(results.folder / "models" / model / "step8")["sha256"]
    assert stated["train_codes"] == open_codes(results.folder / "scored/train/manifest.json").digest
    assert run(results, model) == found


@pytest.mark.parametrize("model", ["dpar", "llamagen"])
def test_its_accuracies_are_counted_over_every_image_whatever_is_described_at_once(tmp_path, monkeypatch, model):
    monkeypatch.setenv("DPAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tests.train.tiny.CLASSES", 7)
    results = Results.make(tmp_path / "seven")
    train_model.main(results.train_model(model))
    codes = {"train": confused(tmp_path / "train", 150, 2), "val": confused(tmp_path / "val", 40, 1)}
    found = []
    for size in (7, 1000):  # neither divides the images
        monkeypatch.setattr(linear_probe, "images_at_once", lambda config, device, size=size: size)
        found.append(run(results, model, **codes))
    assert found[0] == found[1]
    assert found[0]["conditions"]["training_images"] == 150

    folder = results.folder / "models" / model / "step8"
    network, rule = load_model(folder, model), PatchRule.of_model(model_config(folder))
    described = []
    for store, views in zip(
        map(open_codes, codes.values()), (epoch_views(np.arange(150), 2, 0, 0), [0] * 40), strict=True
    ):
        alone = [list(sequential(store, 1, view=view)) for view in range(store.num_views)]
        chosen = [alone[view][image] for image, view in enumerate(views)]
        described.append(describe_codes(network, chosen, rule=rule, precision="float32", device=CPU))
    probe = fit_probe(*described[0], num_classes=7, penalty=1e-4, iterations=200)
    places = [probe(x).argsort(1, descending=True).eq(y[:, None]).int().argmax(1) for x, y in described]
    assert found[0]["top1_training"] == pytest.approx(100 * (places[0] < 1).double().mean().item())
    for k in (1, 5):
        assert found[0][f"top{k}"] == pytest.approx(100 * (places[1] < k).double().mean().item())
    assert found[0]["top1"] < found[0]["top5"] < 100
    assert found[0]["top1"] < found[0]["top1_training"] < 100


def confused(folder, images, views):
    """Codes of which most are labelled at random, so that no classifier is right about all."""
    rows = code_rows(views, images, views)
    labels = rows.labels.copy()
    wrong = np.random.default_rng([views, 7]).integers(0, 7, images)
    labels[views * (images // 3) :] = np.repeat(wrong[images // 3 :], views)
    return write_codes(folder, type(rows)(**(vars(rows) | {"labels": labels})))


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
