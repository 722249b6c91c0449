"""The stage compute_metrics: the file that tables are made from."""

import json

import pytest

from dpar.errors import InputError
from dpar.evaluation.comparison import compare
from dpar.evaluation.features import save_features
from dpar.files import sha256_file
from dpar.stages import compute_metrics
from tests.evaluation.tiny import gaussian_features, read, write_experiment


def run(results, samples, reference, **changes):
    experiment = write_experiment(results, **changes)
    paths = [results / "features" / name for name in ("dpar/seed1.npz", "reference.npz")]
    for path, features in zip(paths, (samples, reference), strict=True):
        save_features(path, features)
    output = results / "metrics" / "dpar" / "seed1.json"
    command = ["--experiment", experiment, "--samples", paths[0], "--reference", paths[1], "--output", output]
    compute_metrics.main(list(map(str, command)))
    return read(output)


def test_it_writes_values_with_their_conditions(tmp_path, capsys):
    prepared = {"crop": "centre", "profile": "adm", "resize": "none"}
    samples, reference = (
        gaussian_features(90, steps=35.5, drawn={"seed": 1}, source_digest="one"),
        gaussian_features(80, 1, left_out=81, extractor_accuracy=0.75, **prepared, source_digest="other"),
    )
    found = run(tmp_path, samples, reference)
    assert found["metric"] == "FD[classifier,4]"
    expected = compare(samples, reference, split_size=45, k=2)
    assert found["values"] == json.loads(json.dumps(expected.values)) | {"steps": 35.5}
    stated = found["conditions"]
    assert expected.conditions.items() <= stated.items()
    assert stated["reference"] == "train, the half that the classifier has not seen"
    assert (stated["extractor"], stated["extractor_sha256"]) == ("classifier", "ab" * 32)
    assert stated["drawn"] == {"seed": 1}
    assert prepared.items() <= stated.items()
    assert (stated["samples_digest"], stated["reference_digest"]) == ("one", "other")
    assert (stated["resolution"], stated["extractor_accuracy"], stated["splits"]) == (16, 0.75, 2)
    assert stated["samples_sha256"] == sha256_file(tmp_path / "features" / "dpar" / "seed1.npz")
    assert stated["reference_sha256"] == sha256_file(tmp_path / "features" / "reference.npz")
    assert set(stated["versions"]) == {"dpar", "torch", "numpy"}
    assert not found["comparable_to_published"]
    assert "not Inception" in found["comparable_reason"]
    assert found["warnings"] == []
    assert "FD[classifier,4]" in capsys.readouterr().out


def test_splits_that_do_not_divide_the_samples_are_rounded_up(tmp_path):
    found = run(tmp_path, gaussian_features(50), gaussian_features(60, 1), evaluation={"splits": 4})
    assert (found["conditions"]["split_size"], found["conditions"]["splits"]) == (13, 4)


def test_warnings_are_said_and_kept(tmp_path, capsys):
    found = run(tmp_path, gaussian_features(20), gaussian_features(60, 1))
    assert "20 samples are few" in found["warnings"][0]
    assert "warning: 20 samples are few" in capsys.readouterr().err


def test_features_of_another_network_leave_nothing_behind(tmp_path):
    with pytest.raises(InputError, match="extractor_sha256"):
        run(tmp_path, gaussian_features(50), gaussian_features(60, 1, extractor_sha256="cd" * 32))
    assert not (tmp_path / "metrics").exists()
