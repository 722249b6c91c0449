"""The entropy model's training stage: both kinds, and that its folder is complete."""

import pytest

from dpar.errors import InputError
from dpar.stages import train_entropy_model
from dpar.weights import load_model, model_config
from dpar.workflow.recipes import ARCHITECTURES
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


def with_gates(**gates):
    values = experiment_values()
    values["entropy_model"]["model"]["layers"] = 1
    values["gates"] = {name: values["entropy_model"] | changes for name, changes in gates.items()}
    return values


def test_a_gate_is_trained_as_the_entropy_model_is_and_says_what_it_is(results):
    results.set(with_gates(small={}))
    train_entropy_model.main(results.train_entropy_model("gates/small"))
    folder = results.folder / "gates/small"
    assert load_model(folder, "llamagen").config.layers == 1
    provenance = model_config(folder)["provenance"]
    assert provenance["gate"] == "small"
    assert "entropy_model" not in provenance
    assert history(folder)[8]["val/nll"] < history(folder)[4]["val/nll"]


def test_a_distilled_gate_learns_the_stored_entropies_and_knows_whose_they_are(results):
    results.set(with_gates(distilled={"kind": "distilled"}))
    train_entropy_model.main(results.train_entropy_model("gates/distilled", "scored"))
    folder = results.folder / "gates/distilled"
    assert load_model(folder, "entropy_regressor").config.outputs == 1
    provenance = model_config(folder)["provenance"]
    assert (provenance["gate"], provenance["entropy_model"]) == ("distilled", "e" * 64)
    points = history(folder)
    assert points[8]["val/entropy_error"] < points[4]["val/entropy_error"]
    assert "val/nll" not in points[8]


def test_a_state_of_other_code_of_llamagen_is_not_gone_on_from(results, monkeypatch):
    train_entropy_model.main(results.train_entropy_model())
    monkeypatch.setitem(ARCHITECTURES, "llamagen", 2)
    with pytest.raises(InputError, match="--restart"):
        train_entropy_model.main(results.train_entropy_model())


def test_a_network_that_the_experiment_does_not_name_is_refused(results):
    results.set(with_gates(small={}))
    with pytest.raises(InputError, match="no network gates/smal places patches here; there are entropy_model, gates/s"):
        train_entropy_model.main(results.train_entropy_model("gates/smal"))
    results.set(with_gates(distilled={"kind": "distilled"}))
    with pytest.raises(InputError, match="no entropies to learn"):
        train_entropy_model.main(results.train_entropy_model("gates/distilled", "codes"))


def test_an_experiment_that_imports_is_told_which_stage_to_run(results):
    values = experiment_values()
    values["entropy_model"] |= {"kind": "null_class", "training": None, "weights": "c2i_B_256.pt"}
    results.set(values)
    with pytest.raises(InputError, match="run import_entropy_model"):
        train_entropy_model.main(results.train_entropy_model())
