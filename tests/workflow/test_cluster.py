"""`snakemake --profile slurm` through a real Slurm: two nodes with fake GPUs on this machine (slurm_cluster.sh)."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, TypeVar

import psutil
import pytest
import yaml

from dpar.data.images import ImageIndex
from dpar.experiment.loading import load_experiment
from dpar.experiment.smoke import smoke_of
from dpar.files import read_json_lines
from dpar.workflow.slurm import minutes
from tests.workflow.conftest import ROOT, asked_resources, job_counts
from tests.workflow.test_end_to_end import tiny

pytestmark = [pytest.mark.slow, pytest.mark.slurm]

CLUSTER = ROOT / "tests" / "workflow" / "slurm_cluster.sh"
LOG = Path("/run/dpar-slurm/log/slurmctld.log")
DEADLINE = time.monotonic() + 1800  # of the whole module, of which two idle cores need a few minutes
LOCAL = {"all", *re.findall(r"^    (\w+),$", (ROOT / "Snakefile").read_text().split("localrules:")[1], re.MULTILINE)}

V = TypeVar("V")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """A Slurm with the partitions `cpu`, `gpu` and `urgent`."""
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="the slurm extra is not installed")
    started = subprocess.run([CLUSTER, "up"], capture_output=True, text=True)
    if started.returncode == 77:
        pytest.skip(started.stderr.strip().splitlines()[-1])
    assert started.returncode == 0, started.stderr
    yield
    subprocess.run(["scancel", "--user=root"], check=True)
    subprocess.run([CLUSTER, "down"], check=True)


class Run:
    """One call of `snakemake --profile slurm` in `folder`, which goes on while the test looks on."""

    started: ClassVar[list["subprocess.Popen[bytes]"]] = []

    def __init__(self, folder: Path, *arguments: str | Path, **environment: str):
        self.log = folder / f"snakemake{len(list(folder.glob('snakemake*.log')))}.log"
        command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--profile", ROOT / "slurm"]
        command += ["--configfile", folder / "experiment.yaml", "--jobs", "4", "--latency-wait", "5"]
        command += ["--slurm-init-seconds-before-status-checks", "3", *arguments]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                list(map(str, command)), cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": str(ROOT), **environment},
            )  # fmt: skip
        self.started.append(self.process)

    def text(self) -> str:
        """All that it has said."""
        return self.log.read_text()

    def end(self) -> int:
        """Its exit status."""
        return self.process.wait(max(1, DEADLINE - time.monotonic()))


def wait_for(condition: Callable[[], V], run: Run | None = None, seconds: float = math.inf) -> V:
    """The first true value of `condition`, which must come before `run` ends."""
    until = min(DEADLINE, time.monotonic() + seconds)
    while not (found := condition()):
        assert run is None or run.process.poll() is None, run.text()[-6000:]
        assert time.monotonic() < until, run.text()[-6000:] if run else jobs()
        time.sleep(0.1)
    return found


def jobs() -> list[dict[str, str]]:
    """What Slurm knows of all jobs, by its own words for it, those in the queue and those that ended."""
    records = subprocess.run(["scontrol", "show", "job", "--oneliner"], capture_output=True, text=True, check=True)
    return [dict(re.findall(r"(\S+?)=(\S+)", line)) for line in records.stdout.splitlines() if "JobId=" in line]


def of_rule(name: str) -> list[dict[str, str]]:
    """The jobs of one rule."""
    return [job for job in jobs() if re.match(rf"rule_{name}\b|rule_{name}_wildcards", job.get("Comment", ""))]


def running(name: str) -> str | None:
    """The number of the job of this rule that is running."""
    return next((job["JobId"] for job in of_rule(name) if job["JobState"] == "RUNNING"), None)


def newest(state: Path) -> int:
    """The step of the newest checkpoint, or 0."""
    return max((int(note.stem.removeprefix("step")) for note in state.glob("step*.json")), default=0)


def processes(name: str, folder: Path) -> list[psutil.Process]:
    """The processes of a stage that work in `folder`, one for each rank."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            line = process.cmdline()
            module = line[line.index("-m") + 1] if "-m" in line[:-1] else ""
            if module == f"dpar.stages.{name}" and process.cwd() == str(folder):
                found.append(process)
    return found


def frozen(name: str, folder: Path, state: str, run: Run) -> list[psutil.Process]:
    """The processes of a training, stopped in their tracks as soon as it has saved something."""
    wait_for(lambda: newest(folder / "results/tiny/state" / state), run)
    ranks = processes(name, folder)
    for rank in ranks:
        rank.suspend()
    assert ranks, f"{name} was over too soon"
    return ranks


def megabytes(text: str) -> float:
    """Memory as Slurm prints it, rounded: `8000M`, `62.50G`."""
    return float(text[:-1]) * {"M": 1, "G": 1024}[text[-1]]


def goes_on(spool: Path) -> list[int]:
    """The step at which each attempt of a training began, from its own record; no step was recorded for good twice."""
    begun, saved, seen = [], 0, set()
    for event in map(json.loads, (spool / "events.jsonl").read_text().splitlines()):
        if event["event"] == "start":
            begun.append(saved)
            seen = {step for step in seen if step <= saved}
        elif event["event"] == "commit":
            saved = event["step"]
        elif event["event"] == "metrics":
            assert event["step"] not in seen
            seen.add(event["step"])
    return begun


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder to run in, with an experiment whose trainings save often."""
    values = tiny()
    del values["tables"]["lengths"], values["tables"]["gates"], values["gates"]
    values["codes"]["train_shards"] = 1
    values["tokenizer"]["training"] |= {"steps": 24, "checkpoint_every": 2}
    for place in (values, values["entropy_model"]):
        place["training"] |= {"steps": 16, "checkpoint_every": 2, "validate_every": 8, "log_every": 4}
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(values))
    yield tmp_path
    for process in Run.started:  # those of a test that failed
        if process.poll() is None:
            process.kill()


def test_the_graph_survives_all_that_happens_on_a_cluster(folder):
    results = folder / "results" / "tiny"
    spools = results / "tracking" / "spool"
    one_node = {"DPAR_GPUS": "2"}
    planned = Run(folder, "all", "--dry-run", **one_node)
    assert planned.end() == 0, planned.text()
    asked = asked_resources(planned.text())

    run = Run(folder, "results/tiny/models/dpar/step16/model.safetensors", **one_node)
    # killed: Snakemake submits it again
    wait_for(lambda: newest(results / "state/tokenizer"), run)
    processes("train_tokenizer", folder)[0].kill()

    # preempted: Slurm tells it to stop, and starts the same job again
    frozen("train_entropy_model", folder, "entropy_model", run)
    preempted = running("train_entropy_model")
    subprocess.run(
        ["sbatch", "--partition=urgent", "--nodes=2", "--gres=gpu:4", "--output=/dev/null", "--wrap=true"], check=True
    )

    # Snakemake itself is killed: the training goes on without it, and a second run leaves it alone
    ranks = frozen("train_model", folder, "models/dpar", run)
    assert len(ranks) == 2
    number = running("train_model")
    run.process.kill()
    run.process.wait()
    again = Run(folder, "all", **one_node)
    assert again.end() != 0
    assert f"killed: {number}." in again.text()
    assert [other["JobId"] for other in of_rule("train_model")] == [number]

    # its time is nearly up: it saves its state and goes back into the queue by itself
    (record,) = of_rule("train_model")
    limit = int(minutes(record["RunTime"])) + 5  # minutes: with the warning, but not the limit, in the past
    subprocess.run(["scontrol", "update", f"JobId={number}", f"TimeLimit={limit}"], check=True)
    wait_for(lambda: re.search(rf"[Ww]arning signal 15 .*JobId={number}\b", LOG.read_text()))
    # the next attempt has all its time, or it would be warned as it starts
    subprocess.run(["scontrol", "update", f"JobId={number}", f"TimeLimit={record['TimeLimit']}"], check=True)
    for rank in ranks:
        rank.resume()
    wait_for(lambda: not [other for other in jobs() if other["JobState"] in ("RUNNING", "PENDING", "COMPLETING")])

    # Snakemake started again goes on to the end; the last training has two nodes
    run = Run(folder, "all", DPAR_GPUS="2", DPAR_NODES="2")
    assert run.end() == 0, run.text()[-6000:]
    assert (results / "report.html").exists()
    done_before = {"generate_images", "train_tokenizer", "encode_images", "train_entropy_model", "score_entropies"}
    counts = job_counts(run.text())
    assert done_before.isdisjoint(counts)
    assert counts["train_model"] == 1

    assert [job["JobState"] for job in of_rule("train_tokenizer")] == ["FAILED", "COMPLETED"]
    assert [(job["JobId"], job["Restarts"]) for job in of_rule("train_entropy_model")] == [(preempted, "1")]
    models = {job["Comment"]: (job["JobId"], job["Restarts"], job["NumNodes"]) for job in of_rule("train_model")}
    assert models["rule_train_model_wildcards_dpar_step16"] == (number, "1", "1")
    assert models["rule_train_model_wildcards_llamagen_step16"][1:] == ("0", "2")

    # each went on from its last checkpoint, and no step is in its record or its history twice
    for name, attempts in (("train_tokenizer", 2), ("train_entropy_model", 2), ("train_model/*-dpar", 2)):
        (spool,) = spools.glob(f"{name}*" if "/" in name else f"{name}/*")
        begun = goes_on(spool)
        assert len(begun) == attempts
        assert 0 == begun[0] < begun[1] < 24
    for model in ("dpar", "llamagen"):
        lines = read_json_lines(results / "models" / model / "step16" / "history.jsonl")
        assert [line["step"] for line in lines] == list(range(4, 17, 4))

    # what the profile asks for reaches the scheduler, for every rule of the graph but those that need no job
    ended = [job for job in jobs() if job.get("WorkDir") == str(folder)]
    seen = set()
    for job in ended:
        comment = job["Comment"]
        rule = next((rule for rule in asked if re.match(rf"rule_{rule}(_wildcards|$)", comment)), None)
        if rule is None:  # a group, with the names of its rules one after the other
            seen |= {rule for rule in asked if rule in comment}
            continue
        seen.add(rule)
        want = asked[rule]
        assert job["Partition"] == want["slurm_partition"], rule
        if job["NumNodes"] == "1":  # as in the dry run
            assert minutes(job["TimeLimit"]) == float(want["runtime"]), rule
            assert job["CPUs/Task"] == want["cpus_per_task"], rule
            assert megabytes(job["MinMemoryNode"]) == pytest.approx(int(want["mem_mb"]), rel=1e-3), rule
            assert job.get("TresPerJob") == (f"gres:gpu:{want['gpu']}" if "gpu" in want else None), rule
    assert seen == set(asked) - LOCAL


def test_a_run_that_names_no_target_is_the_smoke(folder):
    """As `dpar run` starts it, up to the codes; its jobs know of it, and the real run's results are not there."""
    command = [sys.executable, "-m", "dpar.cli", "run", "--profile", "slurm", "--config", folder / "experiment.yaml"]
    command += ["--directory", folder, "--", "--until", "encode_images", "--jobs", "4", "--latency-wait", "5"]
    command += ["--slurm-init-seconds-before-status-checks", "3"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    run = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "no target is named: this is the smoke" in run.stderr
    assert "smoke: every command of tiny once" in run.stdout + run.stderr
    assert [path.name for path in (folder / "results").iterdir()] == ["tiny.smoke"]
    trained = [job for job in of_rule("train_tokenizer") if job.get("WorkDir") == str(folder)]
    assert [job["JobState"] for job in trained] == ["COMPLETED"]
    cut = smoke_of(load_experiment(folder / "experiment.yaml"), "short").images.generated
    assert cut is not None
    assert len(ImageIndex.load(folder / "results/tiny.smoke/index/train.json")) == cut.train < 96


def test_a_failing_job_shows_its_log_and_one_over_its_memory_says_so(folder):
    experiment = folder / "experiment.yaml"
    values = yaml.safe_load(experiment.read_text())
    paths = {split: f"photos/{split}.parquet" for split in ("train", "val")}
    values["images"] |= {"source": "parquet", "generated": None, **paths}
    experiment.write_text(yaml.safe_dump(values))
    (folder / "photos").mkdir()
    for split, path in paths.items():  # files that are not there would be refused before any job
        (folder / path).write_bytes(f"no Parquet file of {split}".encode())
    run = Run(folder, "results/tiny/index/train.json", "--retries", "0")
    assert run.end() != 0
    assert re.search(r"error: .*photos/train", run.text())
    assert "logs/index_images/train.log" in run.text()

    experiment.write_text(yaml.safe_dump(tiny()))
    run = Run(
        folder, "results/tiny/images/val.parquet", "--retries", "0", "--set-resources", "generate_images:mem_mb=40"
    )
    assert run.end() != 0
    assert "Exceeded job memory limit" in run.text()


def test_a_partition_that_does_not_exist_is_named_before_any_job(folder):
    run = Run(folder, "all", DPAR_GPU_PARTITION="a100")
    assert run.end() != 0
    assert "asks for the partition a100, which this cluster does not have; it has cpu, gpu, urgent" in run.text()
    run = Run(folder, "all", DPAR_CPU_PARTITION="short")
    assert run.end() != 0
    assert "the partition short" in run.text()
    assert not [job for job in jobs() if job.get("WorkDir") == str(folder)]


def test_a_machine_without_a_scheduler_is_named_before_any_job(folder):
    (folder / "bin").mkdir()
    for program in ("bash", "git", "sh", "tee", "which"):
        (folder / "bin" / program).symlink_to(shutil.which(program))
    run = Run(folder, "all", PATH=str(folder / "bin"))
    assert run.end() != 0
    assert "there is no Slurm here: sinfo is not on the PATH" in run.text()
