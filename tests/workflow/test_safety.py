"""Expensive results are safe: what is out of date after a change, on results that the graph takes for finished.

The files are empty and marked as made (`snakemake --touch`), in a checkout that the test may change.
"""

import os
import shutil
import subprocess
import sys

import pytest
import yaml

from tests.workflow.conftest import ROOT, job_counts
from tests.workflow.test_end_to_end import tiny

TRAININGS = {"train_tokenizer", "train_entropy_model", "train_model"}


class Checkout:
    """A copy of the repository's code, and an experiment whose results lie next to it."""

    def __init__(self, folder):
        self.folder, self.results = folder, folder / "results" / "tiny"
        for name in ("Snakefile", "workflow", "profiles", "dpar", "config", "envs"):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
            copy(ROOT / name, folder / name)
        (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny()))

    def snakemake(self, *arguments):
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "XDG_CACHE_HOME": str(self.folder / "cache")}
        command = [sys.executable, "-m", "snakemake", "--cores", "1", "--configfile", "tiny.yaml", *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False, timeout=1200
        )

    def planned(self, *arguments):
        """Rule -> number of jobs that a run would do."""
        run = self.snakemake("--dry-run", *arguments)
        assert run.returncode == 0, run.stdout + run.stderr
        counts = job_counts(run.stdout + run.stderr)
        return {rule: count for rule, count in counts.items() if rule not in ("all", "total")}

    def edit(self, path, old, new):
        text = (self.folder / path).read_text()
        assert old in text
        (self.folder / path).write_text(text.replace(old, new, 1))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    checkout = Checkout(tmp_path_factory.mktemp("checkout"))
    listed = checkout.snakemake("--summary")
    header, *rows = [line.split("\t") for line in listed.stdout.splitlines() if "\t" in line]
    assert rows, listed.stderr
    for row in rows:
        path = checkout.folder / row[header.index("output_file")]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    touched = checkout.snakemake("--touch")
    assert touched.returncode == 0, touched.stderr
    assert checkout.planned() == {}
    return checkout


@pytest.mark.slow
def test_a_longer_training_goes_on_and_an_earlier_milestone_is_refused_as_a_new_one(finished):
    trained = finished.planned("--config", "training={steps: 16, milestones: [8, 12]}")["train_model"]
    assert trained == 3 * 2, "to step 12 and to step 16, and none again"
    run = finished.snakemake("--config", "training={milestones: [4]}")
    assert run.returncode != 0
    for model in ("dpar", "dpar_pmax2", "llamagen"):
        assert f"results/tiny/models/{model}/step8: input files updated" in run.stdout + run.stderr
    assert not list(finished.results.glob("models/*/step4"))
    assert finished.planned() == {}


@pytest.mark.slow
def test_a_change_makes_exactly_what_depends_on_it_out_of_date(finished):
    # words: comments, docstrings, the look of a figure, a blank in a shell command
    finished.edit("dpar/stages/train_model.py", '"""Trains DPAR', '"""Really trains DPAR')
    finished.edit("dpar/model/dpar.py", "\n\n\n", "\n\n\n# a remark\n")
    finished.edit("workflow/rules/model.smk", "{wildcards.model} --milestone", "{wildcards.model}  --milestone")
    finished.edit("dpar/report/figures.py", '"font.size": 9', '"font.size": 10')
    assert finished.planned() == {}

    # a figure that is to be drawn anew
    finished.edit("dpar/workflow/recipes.py", '"plot_compute": 1', '"plot_compute": 2')
    assert finished.planned() == {"plot_compute": 1, "write_report": 1}
    finished.edit("dpar/workflow/recipes.py", '"plot_compute": 2', '"plot_compute": 1')

    # one cell that was deleted: it alone is measured again, and what shows it is made again
    cell = finished.results / "metrics" / "dpar_pmax2" / "seed0.json"
    cell.unlink()
    jobs = finished.planned()
    assert jobs["compute_metrics"] == 1
    assert jobs["make_table"] == 1, "the one table that it stands in"
    assert set(jobs) <= {"compute_metrics", "make_table", "plot_ablation", "plot_compute", "write_report"}
    cell.touch()
    finished.snakemake("--touch")

    # other code of DPAR: its two trainings and what follows, neither the baseline nor what places boundaries
    finished.edit("dpar/workflow/recipes.py", '"dpar": 1', '"dpar": 2')
    jobs = finished.planned()
    assert TRAININGS & set(jobs) == {"train_model"}
    assert jobs["train_model"] == jobs["evaluate_likelihood"] == 2
    assert finished.planned("--", "results/tiny/metrics/llamagen/seed0.json") == {}
    finished.edit("dpar/workflow/recipes.py", '"dpar": 2', '"dpar": 1')

    # other code of LlamaGen: the baseline, the entropy model and the gates, and so the DPARs, which have other patches
    finished.edit("dpar/workflow/recipes.py", '"llamagen": 1', '"llamagen": 2')
    jobs = finished.planned()
    assert (jobs["train_entropy_model"], jobs["train_model"]) == (3, 3)
    assert not {"train_tokenizer", "encode_images", "train_classifier"} & set(jobs)
    finished.edit("dpar/workflow/recipes.py", '"llamagen": 2', '"llamagen": 1')
    assert finished.planned() == {}

    # another trainer: all three trainings and what follows, no tokenizer and no entropy model
    finished.edit("dpar/workflow/recipes.py", '"train_model": 1', '"train_model": 2')
    jobs = finished.planned()
    assert jobs["train_model"] == 3
    assert TRAININGS & set(jobs) == {"train_model"}
    assert not {"encode_images", "score_entropies", "calibrate_threshold", "train_classifier"} & set(jobs)

    # which is said, and refused, before anything is touched
    before = {path: path.stat().st_mtime_ns for path in finished.results.glob("models/**/*") if path.is_file()}
    run = finished.snakemake()
    said = run.stdout + run.stderr
    assert run.returncode != 0
    assert "this run would train again, and overwrite, what is finished" in said
    for model in ("dpar", "dpar_pmax2", "llamagen"):
        assert f"results/tiny/models/{model}/step8: settings or recipe have changed since last execution" in said
    assert "dpar run --retrain" in said
    assert {path: path.stat().st_mtime_ns for path in before} == before
