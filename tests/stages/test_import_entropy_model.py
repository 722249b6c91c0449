"""A published LlamaGen becomes a model folder, or the file is refused."""

import hashlib

import pytest
import torch

from dpar.errors import InputError
from dpar.model.variants import build_model
from dpar.stages import import_entropy_model
from dpar.weights import load_model, model_config
from tests.train.tiny import CLASSES, GRID, VOCAB, Results, experiment_values, transformer


@pytest.fixture
def results(tmp_path):
    """A run whose entropy model lies in a published file, in LlamaGen's layout."""
    results = Results.make(tmp_path / "tiny")
    values = experiment_values()
    weights = str(tmp_path / "c2i.pt")
    values["entropy_model"] |= {"kind": "null_class", "training": None, "weights": weights}
    results.set(values)
    return results


def published(results, num_classes=CLASSES, **changes):
    torch.manual_seed(5)
    model = build_model(transformer("llamagen"), vocab_size=VOCAB, grid=GRID, num_classes=num_classes)
    state = {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
    torch.save({"model": state | {"freqs_cis": torch.zeros(3)} | changes}, results.folder.parent / "c2i.pt")
    return state


def flags(results):
    return ["--experiment", str(results.folder / "experiment.json"), "--output", str(results.folder / "entropy_model")]


def test_every_tensor_arrives_and_the_source_is_named(results):
    state = published(results)
    import_entropy_model.main(flags(results))
    model = load_model(results.folder / "entropy_model", "llamagen")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
    source = results.folder.parent / "c2i.pt"
    origin = model_config(results.folder / "entropy_model")["provenance"]
    assert origin["weights"] == {"file": "c2i.pt", "sha256": hashlib.sha256(source.read_bytes()).hexdigest()}


def test_a_gate_is_imported_in_the_same_way_and_says_what_it_is(results):
    state = published(results)
    values = experiment_values()
    weights = str(results.folder.parent / "c2i.pt")
    values["gates"] = {
        "published": values["entropy_model"] | {"kind": "null_class", "training": None, "weights": weights}
    }
    results.set(values)
    folder = results.folder / "gates/published"
    paths = {"experiment": results.folder / "experiment.json", "network": "gates/published", "output": folder}
    import_entropy_model.main([word for name, path in paths.items() for word in (f"--{name}", str(path))])
    model = load_model(folder, "llamagen")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
    assert model_config(folder)["provenance"]["gate"] == "published"


def test_it_may_know_other_classes_than_the_images_have(results):
    """Only its null class is read: LlamaGen's 1000 classes place boundaries in anybody's images."""
    published(results, num_classes=10)
    import_entropy_model.main(flags(results))
    assert load_model(results.folder / "entropy_model", "llamagen").null_label == 10


def test_the_digest_of_the_settings_is_checked(results):
    published(results)
    values = experiment_values()
    weights = {"weights": str(results.folder.parent / "c2i.pt"), "weights_sha256": "0" * 64}
    values["entropy_model"] |= {"kind": "null_class", "training": None, **weights}
    results.set(values)
    with pytest.raises(InputError, match="but the settings say 0000"):
        import_entropy_model.main(flags(results))


def test_a_file_with_more_than_the_model_is_refused_and_nothing_is_written(results):
    published(results, unknown=torch.zeros(2))
    with pytest.raises(InputError, match="unknown"):
        import_entropy_model.main(flags(results))
    assert not (results.folder / "entropy_model").exists()


def test_weights_that_are_not_finite_are_refused_and_nothing_is_written(results):
    published(results, **{"norm.weight": torch.full((32,), torch.nan)})
    with pytest.raises(InputError, match=r"c2i\.pt has weights that are not finite"):
        import_entropy_model.main(flags(results))
    assert not (results.folder / "entropy_model").exists()


def test_an_experiment_that_trains_is_told_so(results):
    results.set(experiment_values())
    with pytest.raises(InputError, match="run train_entropy_model"):
        import_entropy_model.main(flags(results))
