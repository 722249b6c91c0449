"""A gate's threshold makes its patches as long as the entropy model's, on the same training images."""

import numpy as np
import pytest

from dpar.data.codes import open_codes
from dpar.errors import InputError
from dpar.files import read_json
from dpar.patches.counts import PatchCounts
from dpar.patches.rule import patch_starts
from dpar.stages import calibrate_gate
from dpar.train.scoring import score
from dpar.weights import load_model, model_config
from tests.stages.gated import KINDS, calibrate_flags, write_results


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("DPAR_CACHE", str(tmp_path / "cache"))
    return write_results(tmp_path / "tiny")


def calibrated(results, gate):
    calibrate_gate.main(calibrate_flags(results, gate))
    return read_json(results.folder / "gates" / f"{gate}.thresholds.json")


def mean_length(entropy, threshold, max_length):
    starts = patch_starts(entropy, threshold=threshold, max_length=max_length, grid_width=4)
    return PatchCounts.of(starts).mean_patch_length


@pytest.mark.parametrize("gate", KINDS)
def test_patches_are_as_long_as_the_entropy_models(results, gate):
    found = calibrated(results, gate)
    folder = results.folder / "gates" / gate
    codes = open_codes(results.folder / "scored/train/manifest.json")
    tokens, expected = codes.tokens.reshape(-1, 16), np.array(codes.entropy).reshape(-1, 16)
    entropy = score(load_model(folder, results.experiment.gates[gate].stored_as), tokens, KINDS[gate])
    threshold = read_json(results.folder / "thresholds.json")["p_avg"]["1.6"]["threshold"]
    assert (found["gate"], found["images"]) == (model_config(folder)["sha256"], 44)
    assert found["entropy_model"] == model_config(results.folder / "entropy_model")["sha256"]
    assert [rule["patchify"]["max_length"] for rule in found["rules"]] == [3, 2]
    for rule, max_length in zip(found["rules"], (3, 2), strict=True):
        assert rule["entropy_model_threshold"] == threshold
        wanted = mean_length(expected, threshold, max_length)
        assert rule["wanted"] == wanted
        assert rule["achieved"] == mean_length(entropy, rule["threshold"], max_length)
        nearest = min(abs(mean_length(entropy, nats, max_length) - wanted) for nats in np.unique(entropy[:, 1:]))
        assert abs(rule["achieved"] - wanted) == nearest
    if gate == "same":
        assert all(rule["achieved"] == rule["wanted"] for rule in found["rules"])


def test_a_part_of_many_images_is_enough_and_always_the_same(results, monkeypatch):
    monkeypatch.setattr(calibrate_gate, "ROWS", 10)
    first, again = calibrated(results, "small"), calibrated(results, "small")
    assert first["images"] == 10
    assert first == again
    monkeypatch.setattr(calibrate_gate, "ROWS", 44)
    assert calibrated(results, "small")["rules"][0]["wanted"] != first["rules"][0]["wanted"]


def test_what_cannot_be_calibrated_is_said_and_nothing_written(results):
    flags = calibrate_flags(results, "small")
    with pytest.raises(InputError, match="no network gates/smal"):
        calibrate_gate.main([*flags, "--gate", "smal"])
    with pytest.raises(InputError, match="holds a llamagen, expected a entropy_regressor"):
        calibrate_gate.main([*flags, "--gate", "distilled"])
    assert not (results.folder / "gates" / "small.thresholds.json").exists()
