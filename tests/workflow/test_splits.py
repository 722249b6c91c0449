"""Held-out images are indexed after the training images, whose numbers of classes they take; finished results stay."""

import json
import os
import shutil

import pytest
import yaml

from dpar.data.images import ImageIndex
from dpar.files import read_json
from dpar.tracking.makers import accept
from tests.data.samples import image_bytes, sample_image
from tests.workflow.conftest import ROOT, job_counts
from tests.workflow.test_end_to_end import tiny

EACH = 8  # images of a class: enough for the checks at the start of a run, which know the count from the index
INDEXES = ("results/tiny/index/train.json", "results/tiny/index/val.json")


@pytest.fixture
def run(snakemake, tmp_path):
    """Runs the graph on two folders of images, of which the held-out ones lack the first class."""
    for first, (split, classes) in enumerate((("train", "abcd"), ("val", "bcd"))):
        for label, name in enumerate(classes):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(EACH):
                data = image_bytes(sample_image(1000 * first + 100 * label + number))
                (tmp_path / split / name / f"{number}.png").write_bytes(data)
    values = tiny()
    values["images"] |= {"source": "folder", "train": str(tmp_path / "train"), "val": str(tmp_path / "val")}
    del values["images"]["generated"]
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))

    def run(*arguments):
        done = snakemake("-c1", "--configfile", tmp_path / "tiny.yaml", *arguments, cwd=tmp_path)
        return done, {rule: n for rule, n in job_counts(done.stdout + done.stderr).items() if rule != "total"}

    return run


def planned(run, *targets):
    done, jobs = run("--dry-run", "--", *targets)
    assert done.returncode == 0, done.stdout + done.stderr
    return jobs


@pytest.mark.slow
def test_held_out_images_follow_the_training_images(run, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done, jobs = run("--", INDEXES[1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert jobs == {"index_images": 2}
    train, val = (ImageIndex.load(tmp_path / path) for path in INDEXES)
    assert val.class_counts.tolist() == [0, EACH, EACH, EACH]
    assert train.images.classes == val.images.classes == ["a", "b", "c", "d"]
    assert planned(run, *INDEXES) == {}
    (tmp_path / INDEXES[0]).unlink()
    assert planned(run, *INDEXES) == {"index_images": 2}


@pytest.mark.slow
def test_indexes_from_before_classes_had_names_stay_until_one_of_them_is_made_again(run, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert run("--", *INDEXES)[0].returncode == 0
    shutil.rmtree(tmp_path / ".snakemake/metadata")
    for late, path in ((1, INDEXES[0]), (0, INDEXES[1])):  # the larger set takes longer
        old = {name: value for name, value in read_json(tmp_path / path).items() if name != "classes"}
        (tmp_path / path).write_text(json.dumps(old))
        os.utime(tmp_path / path, (1_700_000_000 + late,) * 2)
    accept(tmp_path / "results/tiny", [tmp_path / path for path in INDEXES])  # as the records of then say
    assert planned(run, *INDEXES) == {}
    (tmp_path / INDEXES[1]).unlink()
    assert planned(run, *INDEXES) == {"index_images": 1}
    assert run("--", *INDEXES)[0].returncode == 0
    assert ImageIndex.load(tmp_path / INDEXES[1]).class_counts.tolist() == [0, EACH, EACH, EACH]
    (tmp_path / INDEXES[0]).unlink()
    assert planned(run, *INDEXES) == {"index_images": 2}
