"""A model folder gives back the network that was put in, or a refusal: never other weights."""

import os
import shutil

import pytest
import torch

from dpar.errors import InputError
from dpar.files import read_json, write_json
from dpar.patches.rule import PatchRule
from dpar.weights import load_model, model_config, provenance_of, save_model
from tests.train.tiny import tiny_task


@pytest.fixture
def folder(tmp_path):
    save_model(tmp_path / "one", tiny_task("llamagen").model, {})
    return tmp_path / "one"


def test_what_was_saved_comes_back(folder):
    saved, loaded = tiny_task("llamagen").model.state_dict(), load_model(folder, "llamagen").state_dict()
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)


def test_a_flipped_bit_is_refused(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1  # in the last tensor's numbers: the file itself can be read
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"SHA-256 .* config\.json .* copied in part"):
        load_model(folder, "llamagen")


def test_a_writer_that_was_killed_between_weights_and_config_leaves_nothing_that_loads(folder, monkeypatch):
    replace = os.replace

    def killed(source, target):
        if str(target).endswith(".json"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_model(folder, tiny_task("llamagen", seed=1).model, {})
    with pytest.raises(InputError, match="between the two"):
        load_model(folder, "llamagen")


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_a_network_that_can_compute_nothing_is_refused(folder, broken):
    model = tiny_task("llamagen").model
    model.norm.weight.data[1] = broken
    model.output.weight.data[0, 0] = broken
    save_model(folder, model, {})
    said = r"one has weights that are not finite: .* \(1 of the .* numbers of norm\.weight and some of 1 more tensor"
    with pytest.raises(InputError, match=said):
        load_model(folder, "llamagen")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_whoever_may_read_other_files_may_read_weights(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        save_model(tmp_path / "made", tiny_task("llamagen").model, {})
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "made").iterdir()} == {
        "model.safetensors": mode,
        "config.json": mode,
    }


def test_missing_files_and_other_kinds_are_named(folder, tmp_path):
    with pytest.raises(InputError, match="holds a llamagen, expected a dpar"):
        load_model(folder, "dpar")
    shutil.copytree(folder, tmp_path / "two")
    (tmp_path / "two" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors is missing"):
        load_model(tmp_path / "two", "llamagen")


ORIGIN = {"tokenizer": "a" * 64, "threshold": 2.5, "patchify": {"p_avg": 1.8}, "step": 4, "precision": "float32"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"threshold": None}, "dynamic patches need the threshold"),
        ({"threshold": "x"}, "threshold: Input should be a valid number"),
        ({"patchify": {"junk": 1}}, "patchify"),
        ({"patchify": 5}, "patchify"),
        ({"tokenizer": 5}, "tokenizer: Input should be a valid string"),
        ({"entropy_model": ["a"]}, "entropy_model"),
        ({"step": "4"}, "step"),
        ({"precision": "half"}, "precision"),
        ({"gate": 3}, "gate"),
    ],
)
def test_a_provenance_of_other_types_is_refused_by_field(tmp_path, changes, said):
    save_model(tmp_path / "m", tiny_task("dpar").model, ORIGIN)
    config = tmp_path / "m" / "config.json"
    whole = read_json(config)
    assert model_config(tmp_path / "m") == whole
    write_json(config, whole | {"provenance": ORIGIN | changes})
    with pytest.raises(InputError, match=rf"config\.json lacks a field, or has another .*{said}") as refusal:
        model_config(tmp_path / "m")
    assert "\n" not in str(refusal.value)
    for grid in ("text", None, [4], [4, "x"]):
        write_json(config, whole | {"model": whole["model"] | {"grid": grid}})
        with pytest.raises(InputError, match=r"config\.json lacks a field, or has another .*grid"):
            model_config(tmp_path / "m")


def test_a_dpar_that_does_not_say_where_its_patches_begin_does_not_draw(tmp_path):
    save_model(tmp_path / "m", tiny_task("dpar").model, {})
    with pytest.raises(InputError, match="does not say where its patches begin"):
        PatchRule.of_model(model_config(tmp_path / "m"))
    save_model(tmp_path / "l", tiny_task("llamagen").model, {})
    assert PatchRule.of_model(model_config(tmp_path / "l")) is None


def test_a_provenance_that_lacks_what_is_asked_for_is_refused_by_name(tmp_path):
    save_model(tmp_path / "m", tiny_task("llamagen").model, {"step": 4})
    assert provenance_of(tmp_path / "m", "step") == {"step": 4}
    with pytest.raises(InputError, match=r"config\.json does not say of its model: tokenizer, precision \("):
        provenance_of(tmp_path / "m", "tokenizer", "step", "precision")
