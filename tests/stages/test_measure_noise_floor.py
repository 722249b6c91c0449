"""The stage measure_noise_floor: real against real at the samples' number, or at half of what there is."""

import pytest

from dpar.evaluation.comparison import noise_floor
from dpar.evaluation.features import save_features
from dpar.stages import measure_noise_floor
from tests.evaluation.tiny import gaussian_features, read, write_experiment


def run(results, reference, **changes):
    experiment = write_experiment(results, **changes)
    path, output = results / "features" / "reference.npz", results / "metrics" / "noise_floor.json"
    save_features(path, reference)
    measure_noise_floor.main(["--experiment", str(experiment), "--reference", str(path), "--output", str(output)])
    return read(output)


def test_it_writes_mean_and_spread_over_halvings(tmp_path):
    reference = gaussian_features(90, left_out=90)
    found = run(tmp_path, reference, sampling__num_images=40)
    expected = noise_floor(reference, size=40, halvings=5, splits=2, k=2)
    assert found["metric"] == "FD[classifier,4]"
    for name in ("frechet_distance", "kernel_distance", "precision", "recall", "inception_score"):
        assert found[name]["mean"] == pytest.approx(expected[name]["mean"])
        assert found[name]["sd"] == pytest.approx(expected[name]["sd"])
        assert len(found[name]["values"]) == 5
    stated = found["conditions"]
    assert (stated["samples"], stated["reference_samples"], stated["same_number_as_samples"]) == (40, 40, True)
    assert (stated["halvings"], stated["seed"], stated["k"]) == (5, 0, 2)
    assert stated["reference"] == "train, the half that the classifier has not seen"
    assert found["warnings"] == []


def test_a_small_reference_is_halved_and_the_difference_stated(tmp_path, capsys):
    found = run(tmp_path, gaussian_features(61), sampling__num_images=40)
    assert (found["conditions"]["samples"], found["conditions"]["same_number_as_samples"]) == (30, False)
    assert "61 images" in found["warnings"][0]
    assert "warning: the reference has 61 images" in capsys.readouterr().err
