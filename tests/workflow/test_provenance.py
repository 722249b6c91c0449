"""Results without Snakemake's records: a change of settings is refused there, and nowhere else."""

import subprocess
import sys
from base64 import urlsafe_b64encode

import pytest

from dpar.commands import run
from dpar.errors import InputError
from dpar.experiment.loading import parse_experiment
from dpar.files import write_json
from dpar.workflow.provenance import expect_records, has_records
from tests.experiment.test_settings import demo
from tests.workflow.conftest import ROOT


def settings(**changes):
    values = demo()
    for group, changed in changes.items():
        values[group] = {**values[group], **changed}
    return parse_experiment(values, "test").model_dump(mode="json")


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results" / "demo"
    write_json(folder / "experiment.json", settings())
    (folder / "metrics").mkdir()
    return folder


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"sampling": {"cfg_scale": 3.0}},
            r"sampling\.cfg_scale was 2\.0 .* is 3\.0; .* --forcerun sample_images complete_images`",
        ),
        (
            {"patchify": {"max_length": 3}},
            r"patchify\.max_length was 4 .* calibrate_threshold train_model sample_images`",
        ),
        ({"training": {"learning_rate": 0.5}}, r"training\.learning_rate was .* --forcerun train_model`"),
        # these are not written where they are at their default
        ({"sampling": {"cfg_interval": [0.2, 0.9]}}, r"sampling\.cfg_interval was not set .* is \[0\.2, 0\.9\]"),
        ({"entropy_model": {"precision": "float32"}}, r"entropy_model\.precision .* --forcerun train_entropy_model`"),
        ({"images": {"max_val": 10}}, r"images\.max_val was not set .* is 10"),
    ],
)
def test_changed_settings_are_refused_where_nothing_is_recorded(results, changes, said):
    with pytest.raises(InputError, match=said) as refusal:
        expect_records(results, settings(**changes), [])
    assert "\n" not in str(refusal.value)
    for meant in (["--forcerun", "sample_images"], ["--forcerun=sample_images"], ["--touch"]):
        expect_records(results, settings(**changes), meant)
    record(results, f"results/demo/metrics/{'a' * 300}/seed0.json")
    expect_records(results, settings(**changes), [])


@pytest.mark.parametrize(
    "changes", [{}, {"sampling": {"batch_size": 3, "seeds": [0, 9]}}, {"training": {"log_every": 7, "steps": 800}}]
)
def test_what_makes_nothing_out_of_date_passes(results, changes):
    expect_records(results, settings(**changes), [])


def test_a_setting_taken_back_to_its_default_is_a_change(results):
    write_json(results / "experiment.json", settings(sampling={"cfg_interval": [0.2, 0.9]}))
    with pytest.raises(InputError, match=r"cfg_interval was \[0\.2, 0\.9\] .* is not set"):
        expect_records(results, settings(), [])


def test_settings_of_a_version_that_did_not_have_one_of_today_are_at_its_default(results):
    old = settings()
    del old["sampling"]["top_p"]
    write_json(results / "experiment.json", old)
    expect_records(results, settings(), [])
    with pytest.raises(InputError, match=r"top_p was 1\.0 .* is 0\.5"):
        expect_records(results, settings(sampling={"top_p": 0.5}), [])


def test_of_settings_that_cannot_be_read_those_of_both_versions_are_compared(results):
    before = settings()
    del before["sampling"]["temperature"], before["evaluation"]["splits"]
    before["sampling"] |= {"gone": 3, "cfg_scale": 2.0}
    write_json(results / "experiment.json", before)
    expect_records(results, settings(sampling={"temperature": 0.9}), [])
    with pytest.raises(InputError, match=r"sampling\.cfg_scale was 2\.0 .* is 3\.0"):
        expect_records(results, settings(sampling={"cfg_scale": 3.0}), [])


def test_a_model_or_a_table_that_came_or_went_makes_nothing_out_of_date(results):
    more = settings(models={"other": {"architecture": "llamagen", "width": 16, "heads": 1, "layers": 1}})
    expect_records(results, more, [])
    write_json(results / "experiment.json", more)
    expect_records(results, settings(), [])


def test_where_nothing_is_made_yet_settings_may_change(tmp_path, results):
    expect_records(tmp_path / "none", settings(), [])
    (results / "metrics").rmdir()
    (results / "tracking").mkdir()
    expect_records(results, settings(sampling={"cfg_scale": 3.0}), [])


def test_records_of_other_results_are_none_of_these(results):
    record(results, "results/demo2/metrics/dpar/seed0.json")
    assert not has_records(results)
    record(results, "results/demo/metrics/dpar/seed0.json")
    assert has_records(results)


def record(results, path):
    """A record as Snakemake calls it: long names are cut into folders."""
    name = urlsafe_b64encode(path.encode()).decode()
    folders, rest = [f"@{name[i : i + 250]}" for i in range(0, len(name) - 250, 250)], name[-200:]
    file = results.parent.parent.joinpath(".snakemake", "metadata", *folders, rest if folders else name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()


def test_a_run_refuses_before_snakemake_begins(results, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    directory = results.parent.parent
    flags = ["--config", "config/demo.yaml", "--directory", str(directory), "--set", "sampling.cfg_scale=3"]
    for more in ([], ["-n"]):
        with pytest.raises(InputError, match=r"sampling\.cfg_scale was 2\.0 when .* takes them as current"):
            run.main([*flags, *more])
    assert not (directory / ".snakemake").exists()


@pytest.mark.parametrize(("changes", "status"), [(["sampling={cfg_scale: 3}"], 1), (["seed=0"], 0)])
def test_snakemake_itself_refuses_too(results, changes, status):
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        ROOT / "Snakefile",
        "--directory",
        results.parent.parent,
    ]
    command += ["--configfile", ROOT / "config/demo.yaml", "--config", *changes, "--cores", "1", "-n", "--quiet"]
    run = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    said = run.stdout + run.stderr
    assert run.returncode == status, said
    assert ("sampling.cfg_scale was 2.0 when results/demo was made and is 3.0" in said) == (status != 0)
