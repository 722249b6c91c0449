"""The stage that imports an official tokenizer."""

import pytest
import torch

from dpar.errors import InputError
from dpar.files import read_json, sha256_file
from dpar.stages.import_tokenizer import main
from dpar.weights import load_model
from tests.oracles.tokenizer import official_state
from tests.stages.tokenizers import write_tokenizer_experiment


@pytest.fixture
def weights(tmp_path):
    """A file in the official layout."""
    state = official_state(
        channels=32, multipliers=(1, 1, 1), blocks=2, z_channels=32, vocab_size=16, code_dim=8, seed=0
    )
    path = tmp_path / "vq_ds4.pt"
    torch.save({"model": {name: tensor.float() for name, tensor in state.items()}}, path)
    return path


def experiment(folder, weights, **changes):
    sizes = {"channels": 32, "groups": 32, "multipliers": [1, 1, 1], "pixel_shuffle": 1, "residual_blocks": 2,
             "z_channels": 32, "code_dim": 8}  # fmt: skip
    return write_tokenizer_experiment(folder, weights=str(weights), **(sizes | changes))


def test_every_tensor_of_the_file_is_in_the_folder_and_its_digest_is_kept(tmp_path, weights):
    path = experiment(tmp_path, weights)
    main(["--experiment", str(path), "--output", str(tmp_path / "tokenizer")])
    given = torch.load(weights, weights_only=True)["model"]
    found = load_model(tmp_path / "tokenizer", "tokenizer").state_dict()
    assert set(found) == set(given) - {"quantize.codebook_used"}
    for name, tensor in found.items():
        assert torch.equal(tensor, given[name])
    provenance = read_json(tmp_path / "tokenizer/config.json")["provenance"]
    assert provenance["weights"] == "vq_ds4.pt"
    assert provenance["weights_sha256"] == sha256_file(weights)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "does not exist; download"),
        (lambda path: path.write_bytes(b"<html>"), "web page"),
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "cut off"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path, weights, damage, message):
    path = experiment(tmp_path, weights)
    damage(weights)
    with pytest.raises(InputError, match=message):
        main(["--experiment", str(path), "--output", str(tmp_path / "tokenizer")])
    assert not (tmp_path / "tokenizer").exists()


def test_the_digest_of_the_settings_is_checked(tmp_path, weights):
    path = experiment(tmp_path, weights, weights_sha256="0" * 64)
    with pytest.raises(InputError, match=f"has SHA-256 {sha256_file(weights)}, but the settings say 0000"):
        main(["--experiment", str(path), "--output", str(tmp_path / "tokenizer")])


def test_other_sizes_are_refused_by_name(tmp_path, weights):
    path = experiment(tmp_path, weights, vocab_size=32)
    with pytest.raises(InputError, match=r"quantize\.embedding\.weight \[16, 8\] instead of \[32, 8\]"):
        main(["--experiment", str(path), "--output", str(tmp_path / "tokenizer")])


def test_an_experiment_that_trains_is_refused(tmp_path):
    path = write_tokenizer_experiment(tmp_path)
    with pytest.raises(InputError, match="run train_tokenizer"):
        main(["--experiment", str(path), "--output", str(tmp_path / "tokenizer")])
