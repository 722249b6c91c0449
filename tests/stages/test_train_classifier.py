"""The stage train_classifier: its half of the images, its record, and nothing left after an error."""

import numpy as np
import pytest
import torch

from dpar.data.images import ImageIndex
from dpar.errors import InputError
from dpar.evaluation.classifier import training_half
from dpar.files import sha256_file
from dpar.stages import train_classifier
from dpar.weights import load_model, model_config
from tests.evaluation.tiny import CLASSES, DIMS, SIDE, read, write_experiment, write_index


def run(results, **changes):
    experiment = write_experiment(results, **changes)
    train = results / "index" / "train.json"
    if not train.exists():
        write_index(results, "train", 12)
        write_index(results, "val", 5)
    command = ["--experiment", experiment, "--train-index", train, "--val-index", results / "index" / "val.json"]
    train_classifier.main(list(map(str, [*command, "--output", results / "classifier"])))
    return results / "classifier"


def test_it_leaves_a_classifier_with_its_accuracy_and_what_it_learnt_from(tmp_path, monkeypatch):
    seen = []
    fit = train_classifier.fit_classifier
    monkeypatch.setattr(train_classifier, "fit_classifier", lambda *args, **kw: seen.append(args) or fit(*args, **kw))
    folder = run(
        tmp_path / "demo",
        evaluation={"classifier": {"channels": 8, "dims": DIMS, "steps": 30, "batch_size": 9, "learning_rate": 0.01}},
    )
    config = model_config(folder)
    index = ImageIndex.load(tmp_path / "demo" / "index" / "train.json")
    half = training_half(torch.from_numpy(index.labels), 0)
    images, labels = seen[0][:2]
    assert torch.equal(labels, torch.from_numpy(index.labels)[half])
    assert images.shape == (18, 3, SIDE, SIDE)
    centre = np.asarray(index.read(int(half.nonzero()[0])))[:, 2 : 2 + SIDE]
    np.testing.assert_array_equal(images[0].permute(1, 2, 0), centre)

    provenance = config["provenance"]
    assert provenance["train_digest"] == index.digest
    assert (provenance["train_images"], provenance["val_images"], provenance["seed"]) == (18, 15, 0)
    assert provenance["classes"] == ["class0", "class1", "class2"]
    assert provenance["accuracy"] > 0.6
    assert provenance["accuracy_unseen_half"] > 0.6
    assert config["sha256"] == sha256_file(folder / "model.safetensors")
    model = load_model(folder, "classifier")
    assert model.config.model_dump() == {"resolution": SIDE, "num_classes": CLASSES, "channels": 8, "dims": DIMS}

    (manifest,) = (tmp_path / "demo" / "tracking" / "spool" / "train_classifier").glob("*/manifest.json")
    made = {entry["path"] for entry in read(manifest)["outputs"]}
    assert any("classifier" in path for path in made)


def test_the_same_experiment_makes_the_same_classifier(tmp_path):
    first = sha256_file(run(tmp_path) / "model.safetensors")
    assert sha256_file(run(tmp_path) / "model.safetensors") == first
    assert sha256_file(run(tmp_path, seed=1) / "model.safetensors") != first


def test_an_image_that_vanished_leaves_no_classifier_behind(tmp_path):
    run(tmp_path)
    before = sha256_file(tmp_path / "classifier" / "model.safetensors")
    for path in (tmp_path / "train" / "class1").iterdir():
        path.unlink()
    with pytest.raises((InputError, OSError), match="class1"):
        run(tmp_path, seed=1)
    assert sha256_file(tmp_path / "classifier" / "model.safetensors") == before
    assert sorted(p.name for p in (tmp_path / "classifier").iterdir()) == ["config.json", "model.safetensors"]
