"""The start of a run: what would stop a later job ends it before the first one, and what is finished asks nothing."""

import re

import pytest
import yaml

from dpar.experiment.loading import parse_experiment
from dpar.workflow.user_paths import user_paths
from tests.experiment.test_settings import demo

MISSING = {"source": "folder", "train": "none/train", "val": "none/val", "resolution": 64, "num_classes": 8}


@pytest.fixture
def missing(tmp_path):
    (tmp_path / "missing.yaml").write_text(yaml.safe_dump(demo(images=MISSING)), "utf-8")
    return tmp_path / "missing.yaml"


def test_missing_images_end_a_run_before_its_first_job_and_no_dry_run(snakemake, tmp_path, missing):
    run = snakemake("--dry-run", "--configfile", missing)
    assert run.returncode == 0, run.stdout + run.stderr
    run = snakemake("--cores", "1", "--configfile", missing)
    assert run.returncode != 0
    for split in ("train", "val"):
        assert f"images.{split}: found 'none/{split}', which does not exist" in run.stdout + run.stderr
    assert not (tmp_path / "results" / "demo" / "logs").exists()


def test_a_job_that_reads_no_images_needs_none(snakemake, tmp_path, missing):
    run = snakemake("--cores", "1", "--configfile", missing, "--", "table1")
    assert run.returncode == 0, run.stdout + run.stderr
    assert (tmp_path / "results" / "demo" / "tables" / "table1.md").is_file()


def test_what_the_file_alone_shows_ends_a_dry_run_too(snakemake, tmp_path):
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(demo(sampling__num_images=10)), "utf-8")
    run = snakemake("--dry-run", "--configfile", tmp_path / "few.yaml")
    assert run.returncode != 0
    assert "sampling.num_images: found 10; expected at least 33" in run.stdout + run.stderr


def test_a_key_that_is_there_twice_is_refused_without_dpar_run_too(snakemake, tmp_path):
    text = yaml.safe_dump(demo()) + "seed: 1\n"
    (tmp_path / "twice.yaml").write_text(text, "utf-8")
    run = snakemake("--dry-run", "--configfile", tmp_path / "twice.yaml")
    assert run.returncode != 0
    assert "the key 'seed' is there twice" in run.stdout + run.stderr


@pytest.mark.parametrize("reference", ["train", "val"])
def test_the_outputs_that_need_the_images_are_those_of_the_jobs_that_read_an_index(snakemake, tmp_path, reference):
    values = demo(images=MISSING, evaluation__reference=reference)
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(values), "utf-8")
    run = snakemake("--dry-run", "--configfile", tmp_path / "all.yaml")
    jobs = re.findall(r"^ *(?:local)?rule \w+:\n    input: (.*)\n    output: (.*)$", run.stdout, re.MULTILINE)
    for path in user_paths(parse_experiment(values, "test"), ()):
        index = f"results/demo/index/{path.key.removeprefix('images.')}.json"
        read = {output for inputs, made in jobs if index in inputs.split(", ") for output in made.split(", ")}
        assert len(read) > 3
        others = {
            output for output in read if output.endswith(("/config.json", "/reconstructions.png", "index/val.json"))
        }
        assert read - others == {f"results/demo/{output}" for output in path.outputs} - {index}
