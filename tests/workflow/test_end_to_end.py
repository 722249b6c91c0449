"""The whole graph on a tiny set of images: it finishes, is tracked, survives a kill and reruns only what changed."""

import os
import random
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml

from dpar.files import read_json, sha256_file
from tests.experiment.test_settings import demo
from tests.workflow.conftest import ROOT, job_counts

pytestmark = pytest.mark.slow


def tiny(**changes):
    """The demo, small enough for a test: every rule runs, no number means anything."""
    values = demo(
        name="tiny",
        images__generated={"train": 96, "val": 48},
        images__num_classes=4,
        images__resolution=32,
        tokenizer__vocab_size=32,
        tokenizer__channels=32,
        codes__ten_crop=False,
        codes__format="webdataset",
        evaluation__classifier={"channels": 8, "dims": 4, "steps": 10, "batch_size": 16},
        evaluation__splits=2,
        tables={
            "comparison": {"title": "Both", "rows": [{"model": "llamagen"}, {"model": "dpar"}]},
            "lengths": {"title": "Lengths", "rows": [{"model": "dpar"}], "vary": {"patchify.max_length": [2, 4]}},
            "gates": {
                "title": "Gates",
                "rows": [{"model": "dpar"}],
                "vary": {"inference.gate": [None, "small", "distilled"]},
            },
        },
        **changes,
    )
    values["tokenizer"]["training"] |= {"steps": 12, "batch_size": 8, "checkpoint_every": 4}
    training = {"steps": 8, "batch_size": 8, "checkpoint_every": 2, "validate_every": 4, "log_every": 4}
    for place in (values, values["entropy_model"]):
        place["training"] = {**place["training"], **training}
    gate = {"model": {"architecture": "llamagen", "width": 32, "heads": 1, "layers": 1}, "training": values["training"]}
    values["gates"] = {"small": gate, "distilled": gate | {"kind": "distilled"}}
    values["sampling"] |= {"num_images": 40, "seeds": [0], "batch_size": 20}
    return values


def outputs(results):
    """Path -> digest of everything the rules made (records of tracking, logs and states are not outputs)."""
    aside = ("tracking", "logs", "state")
    files = [p for p in results.rglob("*") if p.is_file() and p.relative_to(results).parts[0] not in aside]
    return {str(p.relative_to(results)): sha256_file(p) for p in files}


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny()))
    return path


def test_the_graph_runs_to_the_report_and_a_second_run_does_nothing(snakemake, experiment, tmp_path, connections):
    run = snakemake("--cores", "2", "--configfile", experiment)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-6000:]
    assert connections.processes() > 30  # Snakemake, its jobs and stages, and what carries records into MLflow
    assert connections.abroad() == []
    results = tmp_path / "results" / "tiny"
    page = (results / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert "Gates compared with the entropy model" in page
    assert "http" not in page.replace("http-equiv", "")
    assert not list(results.rglob("*.partial"))

    again = snakemake("--cores", "2", "--configfile", experiment)
    assert again.returncode == 0
    assert "Nothing to be done" in again.stdout + again.stderr

    audit = subprocess.run(
        [
            *(sys.executable, "-m", "dpar.cli", "track", "audit"),
            *("--results", str(results), "--snakefile", str(ROOT / "Snakefile")),
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert audit.returncode == 0, audit.stdout + audit.stderr

    # more guidance means other samples of the same models, and another back end of attention means nothing
    values = tiny()
    values["sampling"]["cfg_scale"] = 3.0
    values["models"]["dpar"]["attention"] = "sdpa"
    experiment.write_text(yaml.safe_dump(values))
    triggers = ("--rerun-triggers", "mtime", "params", "input", "software-env")
    planned = snakemake("--dry-run", "--configfile", experiment, *triggers)
    jobs = job_counts(planned.stdout + planned.stderr)
    assert jobs["sample_images"] == 5
    remade = {"train_model", "train_tokenizer", "train_entropy_model", "encode_images", "score_entropies"}
    assert (remade | {"calibrate_gate", "compare_gates"}).isdisjoint(jobs)

    # and the same run brings everything up to date
    run = snakemake("--cores", "2", "--configfile", experiment, *triggers)
    assert run.returncode == 0, run.stderr[-3000:]
    assert job_counts(run.stdout + run.stderr)["sample_images"] == 5
    planned = snakemake("--dry-run", "--configfile", experiment, *triggers)
    assert "Nothing to be done" in planned.stdout + planned.stderr

    # one deleted cell is made again alone, when it is asked for
    cell = results / "metrics" / "dpar_pmax2" / "seed0.json"
    cell.unlink()
    planned = snakemake(cell.relative_to(tmp_path), "--dry-run", "--configfile", experiment, *triggers)
    jobs = job_counts(planned.stdout + planned.stderr)
    assert jobs["compute_metrics"] == 1
    assert {"train_model", "sample_images", "extract_features"}.isdisjoint(jobs)


class Run:
    """`dpar run` on a LlamaGen of some steps, which begin anew where they are forced."""

    def __init__(self, experiment, folder, steps, *arguments):
        self.log = folder / f"said{len(list(folder.glob('said*')))}"
        training = f"training={{steps: {steps}, milestones: [], log_every: 1, checkpoint_every: 5000}}"
        target = f"results/tiny/models/llamagen/step{steps}/model.safetensors"
        flags = ["--config", str(experiment), "--cores", "2", "--directory", str(folder)]
        command = [
            sys.executable,
            "-m",
            "dpar.cli",
            "run",
            "--verbose",
            *flags,
            "--",
            target,
            "--config",
            training,
            *arguments,
        ]
        environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def said(self):
        return self.log.read_text()

    def stages_at_work(self):
        """Comes back when a step of 5000 has been taken; the stages, with what is around them."""
        while not re.search(r"^step \d+/5000", self.said, re.MULTILINE):
            assert self.process.poll() is None, self.said
            time.sleep(0.1)
        family = psutil.Process(self.process.pid).children(recursive=True)
        return [process for process in family if "sync" not in process.cmdline()]

    def ended(self):
        status = self.process.wait(600)
        return status, self.said


def test_a_run_that_is_asked_to_stop_saves_and_ends_and_one_by_force_begins_anew(experiment, tmp_path):
    stopped = Run(experiment, tmp_path, 5000)
    family = stopped.stages_at_work()
    assert any("dpar.stages.train_model" in process.cmdline() for process in family)
    stopped.process.terminate()
    status, said = stopped.ended()
    assert status == 128 + signal.SIGTERM, said
    assert "interrupted (SIGTERM): finished work is kept" in said
    assert "mend its cause" not in said
    assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    step = int(re.search(r"stopped on request and saved after step (\d+)", said)[1])
    state = tmp_path / "results" / "tiny" / "state" / "models" / "llamagen"
    assert (state / f"step{step:08d}.json").exists()

    status, said = Run(experiment, tmp_path, step + 2).ended()
    assert status == 0, said
    assert f"step {step + 2}/" in said
    assert f"step {step}/" not in said, "it went on from there"
    weights = tmp_path / "results" / "tiny" / "models" / "llamagen" / f"step{step + 2}" / "model.safetensors"
    before = sha256_file(weights)

    status, said = Run(experiment, tmp_path, step + 2, "--forcerun", "train_model").ended()
    assert status == 0, said
    assert f"the old state is now results/tiny/state/models/{state.name}.1" in said
    assert f"step 1/{step + 2}" in said
    assert state.with_name("llamagen.1").is_dir()
    assert sha256_file(weights) == before


@pytest.mark.endurance
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_outputs(experiment, tmp_path):
    """`kill -9` of the whole process group at random moments, then the same command, against a run left alone."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def command(folder):
        return [
            sys.executable,
            "-m",
            "dpar.commands.run",
            "--config",
            str(experiment),
            "--cores",
            "2",
            "--directory",
            str(folder),
        ]

    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    subprocess.run(command(undisturbed), env=environment, cwd=ROOT, check=True, capture_output=True, timeout=1200)
    moments = random.Random(0)
    for attempt in range(4):
        process = subprocess.Popen(
            command(disturbed), env=environment, cwd=ROOT, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(moments.uniform(8, 30))
        assert attempt > 0 or process.poll() is None, "the first kill must hit a run that is going on"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command(disturbed), env=environment, cwd=ROOT, check=True, capture_output=True, timeout=1200)

    expected, found = outputs(undisturbed / "results/tiny"), outputs(disturbed / "results/tiny")
    assert set(found) == set(expected)
    differing = {path for path in expected if found[path] != expected[path]}
    timed = {path for path in differing if path.endswith(("history.jsonl", "report.html"))}  # they hold speeds, curves
    assert differing == timed
    assert read_json(disturbed / "results/tiny/metrics/dpar/seed0.json")["values"]
