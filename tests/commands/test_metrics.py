"""`dpar metrics`: numbers of stored features, in text and JSON, and its errors."""

import json

import numpy as np
import pytest

from dpar.cli import main
from dpar.evaluation.features import save_features
from tests.evaluation.tiny import gaussian_features
from tests.oracles import metrics as oracle


@pytest.fixture
def files(tmp_path):
    samples, reference = gaussian_features(60), gaussian_features(70, 1, shift=0.4)
    np.save(tmp_path / "a.npy", samples.features)
    np.save(tmp_path / "b.npy", reference.features)
    np.save(tmp_path / "l.npy", samples.logits)
    save_features(tmp_path / "a.npz", samples)
    save_features(tmp_path / "b.npz", reference)
    return tmp_path


def run(files, *arguments, samples="a.npy", reference="b.npy"):
    named = ["--samples", files / samples, "--reference", files / reference]
    return main(["metrics", *map(str, [*named, *arguments])])


def test_json_holds_every_metric_of_the_features(files, capsys):
    assert run(files, "--logits", files / "l.npy", "--split-size", 25, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    a, b, logits = (np.load(files / name) for name in ("a.npy", "b.npy", "l.npy"))
    assert found["fd"] == pytest.approx(oracle.frechet_distance(a, b), rel=1e-9)
    assert found["kid"] == pytest.approx(oracle.kernel_distance(a, b), rel=1e-9)
    assert (found["precision"], found["recall"]) == oracle.precision_recall(a, b, 3)
    assert found["inception_score"] == pytest.approx(oracle.inception_score(logits, 25), rel=1e-9)
    assert found["conditions"]["split_size"] == 25
    assert found["warnings"] == []


def test_features_that_are_compared_with_themselves_are_warned_of(files, capsys):
    assert run(files, reference="a.npy") == 0
    assert "warning: samples and reference are the same images" in capsys.readouterr().err


def test_without_logits_there_is_no_inception_score(files, capsys):
    assert run(files, "--json") == 0
    assert json.loads(capsys.readouterr().out)["inception_score"] is None
    assert run(files) == 0
    said = capsys.readouterr().out
    assert "inception_score  not measured: give --logits" in said
    assert said.startswith("fd  ")


def test_files_of_the_pipeline_bring_their_logits(files, capsys):
    assert run(files, "--json", samples="a.npz", reference="b.npz") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["inception_score"] == pytest.approx(oracle.inception_score(gaussian_features(60).logits, 60), rel=1e-6)


def test_logits_sorted_by_class_are_warned_of_and_scored_as_they_stand(files, capsys):
    logits = np.repeat(8 * np.eye(4), 15, 0)
    np.save(files / "sorted.npy", logits)
    assert run(files, "--logits", files / "sorted.npy", "--split-size", 15, "--json") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["inception_score"] == pytest.approx(1)
    assert "warning: the samples are sorted by class" in printed.err


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((60, 5)), "of 5 dimensions and the reference of 4"),
        (np.full((60, 4), np.nan), "60 of 60 rows"),
        (np.zeros((3, 4)), "3 samples are too few for features of 4 dimensions"),
        (np.zeros(60), "of shape (60,)"),
    ],
)
def test_features_that_cannot_be_compared_are_one_line_and_status_two(array, said, files, capsys):
    np.save(files / "bad.npy", array)
    assert run(files, samples="bad.npy") == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.out == ""


def test_logits_of_other_images_are_refused(files, capsys):
    np.save(files / "short.npy", np.zeros((7, 3)))
    assert run(files, "--logits", files / "short.npy") == 2
    assert "short.npy has 7 rows and" in capsys.readouterr().err
    assert run(files, samples="missing.npy") == 2
    assert "missing.npy does not exist" in capsys.readouterr().err
