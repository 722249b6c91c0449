"""Files that an experiment names, compared with those that its results were made from."""

import json
import subprocess
import sys

import numpy as np
import pytest

from dpar.errors import InputError
from dpar.experiment.loading import parse_experiment
from dpar.files import sha256_file, write_json
from dpar.workflow.user_paths import expect_same_files
from tests.experiment.test_settings import demo
from tests.workflow.conftest import ROOT


def imported(folder, **weights):
    """An experiment with published weights of its tokenizer, and results into which they were imported."""
    (folder / "vq.pt").write_bytes(b"first")
    values = demo()
    values["tokenizer"] = {name: value for name, value in values["tokenizer"].items() if name != "training"}
    values["tokenizer"] |= {"weights": str(folder / "vq.pt")} | weights
    experiment, results = parse_experiment(values, "a test"), folder / "results" / "demo"
    write_json(results / "experiment.json", experiment.model_dump(mode="json"))
    origin = {"weights": "vq.pt", "weights_sha256": sha256_file(folder / "vq.pt")}
    write_json(results / "tokenizer" / "config.json", {"provenance": origin})
    return experiment, results


def test_another_file_than_the_imported_one_is_said(tmp_path, capsys):
    experiment, results = imported(tmp_path)
    (tmp_path / "vq.pt").write_bytes(b"first")
    expect_same_files(experiment, results)
    assert capsys.readouterr().err == ""
    (tmp_path / "vq.pt").write_bytes(b"other")
    expect_same_files(experiment, results)
    said = capsys.readouterr().err
    assert said.startswith(f"tokenizer.weights: {tmp_path / 'vq.pt'} is another file than {results / 'tokenizer'} was")
    assert f"delete {results / 'tokenizer'} to make it anew" in said


@pytest.mark.parametrize("command", [("snakemake",), ("dpar.cli", "run")])
def test_every_command_that_runs_the_graph_says_it_once_where_nothing_else_is_new(tmp_path, command):
    results = imported(tmp_path)[1]
    (tmp_path / "vq.pt").write_bytes(b"other")
    if command == ("snakemake",):
        flags = ["--snakefile", str(ROOT / "Snakefile"), "--configfile", str(results / "experiment.json")]
    else:
        flags = ["--config", str(results / "experiment.json")]
    flags += ["--directory", str(tmp_path), "--cores", "1", "-n"]
    run = subprocess.run(
        [sys.executable, "-m", *command, *flags], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert (run.stdout + run.stderr).count("vq.pt is another file than") == 1, run.stdout + run.stderr


def test_a_digest_that_the_imported_file_did_not_have_is_refused(tmp_path):
    experiment, results = imported(tmp_path, weights_sha256="0" * 64)
    with pytest.raises(
        InputError, match=r"^tokenizer\.weights_sha256 is 0000.*but .*tokenizer was imported from a file"
    ):
        expect_same_files(experiment, results)


@pytest.mark.parametrize(
    "key", ["evaluation.reference", "evaluation.extractor", "tokenizer.training.perceptual_network"]
)
def test_another_reference_or_network_than_was_measured_with_is_said(tmp_path, capsys, key):
    """Numbers against the file that was there before would be taken for those against the one that is there now."""
    file, results, values = tmp_path / "own.pt", tmp_path / "results" / "demo", demo()
    file.write_bytes(b"first")
    group, _, name = key.rpartition(".")
    values["tokenizer"]["training"] |= {"perceptual_weight": 1.0} if "perceptual" in key else {}
    (values["evaluation"] if group == "evaluation" else values["tokenizer"]["training"])[name] = str(file)
    experiment = parse_experiment(values, "a test")
    write_json(results / "experiment.json", experiment.model_dump(mode="json"))
    write_json(results / "tokenizer" / "config.json", {"provenance": {"perceptual_network": sha256_file(file)}})
    (results / "features").mkdir()
    conditions = dict.fromkeys(("source_digest", "extractor_sha256"), sha256_file(file))
    np.savez(results / "features" / "reference.npz", conditions=np.array(json.dumps(conditions)))
    expect_same_files(experiment, results)
    file.write_bytes(b"first")
    expect_same_files(experiment, results)
    assert capsys.readouterr().err == ""
    file.write_bytes(b"other")
    expect_same_files(experiment, results)
    made = {"reference": "features/reference.npz", "extractor": "features", "perceptual_network": "tokenizer"}[name]
    assert capsys.readouterr().err.startswith(
        f"{key}: {file} is another file than {results / made} was made from; delete"
    )
    (results / "features" / "reference.npz").write_bytes(b"damaged")
    (results / "tokenizer" / "config.json").unlink()
    expect_same_files(experiment, results)
    assert capsys.readouterr().err == ""


def test_weights_by_another_path_are_imported_anew_anyhow(tmp_path, capsys):
    experiment, results = imported(tmp_path)
    (tmp_path / "new.pt").write_bytes(b"other")
    tokenizer = experiment.tokenizer.model_copy(
        update={"weights": str(tmp_path / "new.pt"), "weights_sha256": "0" * 64}
    )
    expect_same_files(experiment.model_copy(update={"tokenizer": tokenizer}), results)
    expect_same_files(parse_experiment(demo(), "a test"), results)
    assert capsys.readouterr().err == ""
