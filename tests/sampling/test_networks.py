"""Networks that were not made for one another are refused, and the model alone takes the precision of sampling."""

import shutil

import numpy as np
import pytest
import torch

from dpar.errors import InputError
from dpar.experiment.settings import Autoencoder, Patchify
from dpar.files import read_json, write_json
from dpar.model.entropy_regressor import EntropyRegressor
from dpar.model.llamagen import LlamaGen
from dpar.sampling.networks import gate_threshold, gate_thresholds, load_networks
from dpar.tokenizer.autoencoder import VQAutoencoder
from dpar.weights import load_model, model_config, save_model
from tests.stages.sampled import GATE_THRESHOLDS, PATCHIFY, SIZES, TOKENIZER, add_gates, write_results

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return write_results(tmp_path_factory.mktemp("results"))


def load(results, **folders):
    folders = {
        "model": results / "models" / "dpar" / "step1",
        "entropy_model": results / "entropy_model",
        "tokenizer": results / "tokenizer",
        "precision": "float32",
        **folders,
    }
    return load_networks(**folders, device=CPU)


def test_half_precision_leaves_entropies_and_pixels_alone(results):
    networks = load(results, precision="bfloat16")
    assert {p.dtype for p in networks.model.parameters()} == {torch.bfloat16}
    assert networks.entropy_model is not None
    assert {p.dtype for p in networks.entropy_model.parameters()} == {torch.float32}
    assert {p.dtype for p in networks.tokenizer.parameters()} == {torch.float32}
    assert load(results, entropy_model=None).entropy_model is None


def test_entropies_are_computed_as_the_training_was_scored_or_the_gate_calibrated(results, tmp_path):
    assert load(results).entropy_precision == "float32"
    shutil.copytree(results, tmp_path / "results")
    config = tmp_path / "results/models/dpar/step1/config.json"
    values = read_json(config)
    values["provenance"]["entropy_precision"] = "bfloat16"
    write_json(config, values)
    networks = load(tmp_path / "results")
    assert networks.entropy_precision == "bfloat16"
    assert {p.dtype for p in networks.entropy_model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in networks.model.parameters()} == {torch.float32}
    add_gates(tmp_path / "results")
    gate = tmp_path / "results/gates/small"
    assert load(tmp_path / "results", entropy_model=gate, gate="small").entropy_precision == "float32"
    write_json(gate_thresholds(gate), read_json(gate_thresholds(gate)) | {"entropy_precision": "tf32"})
    assert load(tmp_path / "results", entropy_model=gate, gate="small").entropy_precision == "tf32"


def test_pixels_have_the_size_that_is_asked_for(results):
    networks = load(results)
    tokens = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(0))
    assert networks.pixels(tokens, 8).shape == (2, 8, 8, 3)
    with torch.no_grad():
        images = networks.tokenizer.decode(tokens.view(2, 4, 4))
        resized = torch.nn.functional.interpolate(images, size=(6, 6), mode="bicubic")
    expected = (127.5 * resized + 128).clamp(0, 255).byte().permute(0, 2, 3, 1)
    assert np.array_equal(networks.pixels(tokens, 6), expected.numpy())


def test_published_networks_do_not_know_their_tokenizer_but_must_fit_it(results, tmp_path):
    """Nothing is recorded to compare, so the sizes must tell."""
    save_model(tmp_path / "entropy_model", LlamaGen(LlamaGen.Config(layers=1, **SIZES)), {})
    save_model(tmp_path / "llamagen", LlamaGen(LlamaGen.Config(layers=1, num_classes=3, **SIZES)), {})
    folders = {"model": tmp_path / "llamagen", "entropy_model": tmp_path / "entropy_model"}
    assert load(results, **folders).provenance == {}
    other = VQAutoencoder(Autoencoder(**{**TOKENIZER, "vocab_size": 32}, attention=False))
    save_model(tmp_path / "tokenizer", other, {})
    with pytest.raises(InputError, match=r"knows 32 codes, .* 64: they were made for different tokenizers"):
        load(results, **folders, tokenizer=tmp_path / "tokenizer")
    larger = LlamaGen(LlamaGen.Config(layers=1, **{**SIZES, "grid": (8, 8)}))
    save_model(tmp_path / "larger", larger, {})
    with pytest.raises(InputError, match=r"reads images of 8 x 8 tokens, .* those of 4 x 4"):
        load(results, model=tmp_path / "llamagen", entropy_model=tmp_path / "larger")


@pytest.fixture(scope="module")
def gated(tmp_path_factory):
    results = write_results(tmp_path_factory.mktemp("gated"))
    add_gates(results)
    return results


@pytest.mark.parametrize(("gate", "kind"), [("small", LlamaGen), ("distilled", EntropyRegressor)])
def test_a_gate_of_the_experiment_stands_in_for_the_entropy_model(gated, gate, kind):
    networks = load(gated, entropy_model=gated / "gates" / gate, gate=gate)
    assert type(networks.entropy_model) is kind
    assert networks.digests["entropy_model"] == model_config(gated / "gates" / gate)["sha256"]


def test_what_is_not_the_named_gate_is_refused(gated, tmp_path):
    with pytest.raises(InputError, match="made with another entropy model"):
        load(gated, entropy_model=gated / "gates/small")
    with pytest.raises(InputError, match="small is the gate 'small', expected the gate 'distilled'"):
        load(gated, entropy_model=gated / "gates/small", gate="distilled")
    with pytest.raises(InputError, match="entropy_model is no gate of an experiment, expected the gate 'small'"):
        load(gated, gate="small")
    gate = load_model(gated / "gates/distilled", "entropy_regressor")
    origin = model_config(gated / "gates/distilled")["provenance"]
    save_model(tmp_path / "distilled", gate, origin | {"entropy_model": "0" * 64})
    with pytest.raises(InputError, match=r"distilled from another entropy model \(sha256 000000000000\.\.\.\)"):
        load(gated, entropy_model=tmp_path / "distilled", gate="distilled")
    save_model(tmp_path / "small", gate, origin | {"tokenizer": "0" * 64})
    with pytest.raises(InputError, match="made with another tokenizer"):
        load(gated, entropy_model=tmp_path / "small", gate="distilled")


def test_a_gate_has_the_threshold_that_was_calibrated_for_the_patches(gated, tmp_path):
    patchify = Patchify(**PATCHIFY)
    folder = gated / "gates/small"
    assert gate_threshold(folder, patchify) == GATE_THRESHOLDS["small"]
    with pytest.raises(InputError, match=r"no threshold for patches of .*max_length=2.*calibrate_gate again"):
        gate_threshold(folder, patchify.model_copy(update={"max_length": 2}))
    other = tmp_path / "small"
    shutil.copytree(gated / "gates/distilled", other)
    shutil.copy(gate_thresholds(folder), gate_thresholds(other))
    with pytest.raises(InputError, match="made for another network"):
        gate_threshold(other, patchify)


def test_a_training_that_diverged_is_refused(results, tmp_path):
    model = load_model(results / "models" / "llamagen" / "step1", "llamagen")
    model.layers[0].attention.wo.weight.data[3, 2] = torch.nan
    save_model(tmp_path / "llamagen", model, {})
    with pytest.raises(InputError, match="has weights that are not finite: its training diverged"):
        load(results, model=tmp_path / "llamagen", entropy_model=None)
