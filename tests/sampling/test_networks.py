"""Networks that were not made for one another are refused, and the model alone takes the precision of sampling."""

import numpy as np
import pytest
import torch

from dpar.config import Autoencoder
from dpar.errors import InputError
from dpar.model.llamagen import LlamaGen
from dpar.sampling.networks import load_networks
from dpar.tokenizer.autoencoder import VQAutoencoder
from dpar.weights import load_model, save_model
from tests.stages.sampled import SIZES, TOKENIZER, write_results

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


def test_a_training_that_diverged_is_refused(results, tmp_path):
    model = load_model(results / "models" / "llamagen" / "step1", "llamagen")
    model.layers[0].attention.wo.weight.data[3, 2] = torch.nan
    save_model(tmp_path / "llamagen", model, {})
    with pytest.raises(InputError, match="has weights that are not finite: its training diverged"):
        load(results, model=tmp_path / "llamagen", entropy_model=None)
