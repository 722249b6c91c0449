"""The graph: every experiment resolves without its data, rules and stages match, mistakes are named."""

import ast
import os
import re
import signal
import subprocess

import pytest
import yaml
import yte

from dpar.experiment.cells import figure_rows, model_cells, sample_cells, table_rows
from dpar.experiment.loading import load_experiment
from dpar.report import targets
from dpar.weights import CONFIG as MODEL_CONFIG
from dpar.weights import WEIGHTS
from dpar.workflow.recipes import RECIPES
from tests.experiment.test_settings import CONFIG, SHIPPED, demo
from tests.workflow.conftest import ROOT, asked_resources, job_counts

RULE_FILES = sorted((ROOT / "workflow" / "rules").glob("*.smk"))
RULES = {name: file for file in RULE_FILES for name in re.findall(r"^ *rule (\w+):", file.read_text(), re.MULTILINE)}


@pytest.mark.parametrize("name", [name for name in SHIPPED if name != "fashion28_coarse"])  # that of fashion28_fine
def test_an_experiment_resolves_to_its_full_list_of_jobs_without_any_data(snakemake, name):
    experiment = load_experiment(CONFIG / f"{name}.yaml")
    run = snakemake("--dry-run", "--configfile", CONFIG / f"{name}.yaml")
    assert run.returncode == 0, run.stdout + run.stderr
    jobs = job_counts(run.stdout + run.stderr)
    made = re.findall(r"^    output: (.*)$", run.stdout + run.stderr, re.MULTILINE)
    patterns = targets.output_patterns(experiment, [file.read_text() for file in RULE_FILES])
    assert len(made) == sum(jobs.values()) - jobs["all"] - jobs["total"]
    assert not any(targets.file_refusal(file, experiment, patterns) for files in made for file in files.split(", "))

    rows = [row for table in experiment.shown_tables for row in table_rows(experiment, table)]
    rows += [row for figure in experiment.figures for row in figure_rows(experiment, figure)]
    cells = {cell.slug: cell for row in rows for cell in row.samples}.values()
    assert len(sample_cells(experiment)) - len(cells) == 2 * (name in ("imagenet256", "imagenet384"))  # XXL, on request
    states = set()
    for cell in cells:  # a state needs those before it
        milestones = model_cells(experiment)[cell.model].milestones
        states |= {(cell.model, m) for m in milestones[: milestones.index(cell.milestone) + 1]}
    assert jobs["train_model"] == len(states)
    assert jobs["sample_images"] == sum(len(c.sampling.seeds) * c.sampling.shards for c in cells)
    assert jobs["compute_metrics"] == sum(len(c.sampling.seeds) for c in cells)
    assert jobs["encode_images"] == experiment.codes.train_shards + experiment.codes.val_shards
    assert jobs["make_table"] == len(experiment.shown_tables)
    networks = experiment.networks.values()
    assert jobs.get("train_entropy_model", 0) == sum(network.training is not None for network in networks)
    assert jobs.get("import_entropy_model", 0) == sum(network.weights is not None for network in networks)
    assert jobs.get("calibrate_gate", 0) == len(experiment.gates)
    assert jobs.get("compare_gates", 0) == (len(experiment.gates) > 0)
    probed = [
        cell
        for name_of_table, table in experiment.tables.items()
        if table.linear_probe
        for row in table_rows(experiment, name_of_table)
        for cell in row.samples
    ]
    assert jobs.get("linear_probe", 0) == len({(cell.model, cell.milestone) for cell in probed})
    assert (name in ("fashion28", "fashion28_converged", "imagenet256")) == bool(probed)
    assert (name in ("fashion28", "fashion28_converged", "photos64", "imagenet256")) == bool(experiment.gates)


@pytest.mark.parametrize("name", ["imagenet256", "imagenet384"])
def test_every_table_and_figure_of_the_paper_can_be_asked_for_by_its_name(snakemake, name):
    asked = [
        target
        for target in targets.targets(load_experiment(CONFIG / f"{name}.yaml"))
        if target in targets.PAPER_TARGETS
    ]
    run = snakemake("--dry-run", "--quiet", "rules", "--configfile", CONFIG / f"{name}.yaml", "--", *asked)
    assert run.returncode == 0, run.stdout + run.stderr
    jobs = job_counts(run.stdout + run.stderr)
    assert {target: jobs.get(target) for target in asked} == dict.fromkeys(asked, 1)
    assert jobs["describe_models"] == 1


def test_samples_ask_for_the_training_images_where_their_classes_follow_them(snakemake):
    experiment = CONFIG / "demo.yaml"
    for labels in ("balanced", "training"):
        more = ("--config", f"set=[sampling.labels={labels}]")
        run = snakemake("--dry-run", "--printshellcmds", "--configfile", experiment, *more, "--", "table2")
        assert run.returncode == 0, run.stdout + run.stderr
        (command, *_) = re.findall(r".*dpar\.stages\.sample_images.*", run.stdout + run.stderr)
        assert ("index/train.json" in command) == (labels == "training"), command


def test_a_table_resolves_to_the_jobs_that_it_needs_and_no_others(snakemake):
    run = snakemake("--dry-run", "--configfile", CONFIG / "imagenet256.yaml", "--", "table4")
    jobs = job_counts(run.stdout + run.stderr)
    trained = re.findall(r"wildcards: model=(\S+), milestone=(\S+)", run.stdout + run.stderr)
    assert {state for _, state in trained} == {"epoch50"}
    assert {model for model, _ in trained} == {"DPAR-L", *(f"DPAR-L_eth{e}" for e in ("7.6", "7.7", "7.9", "8"))}
    assert jobs["train_model"] == 5
    assert jobs["sample_images"] == 5 * 16
    assert jobs["make_table"] == 1
    assert {"linear_probe", "plot_samples", "write_report", "describe_models"}.isdisjoint(jobs)


def test_a_target_of_another_experiment_is_refused_with_the_file_that_has_it(snakemake):
    run = snakemake("--dry-run", "--configfile", CONFIG / "imagenet256.yaml", "--", "table12")
    assert run.returncode != 0
    assert "table12 is no part of the experiment imagenet256" in run.stdout + run.stderr
    assert "--configfile config/imagenet384.yaml" in run.stdout + run.stderr


def test_a_bare_snakemake_at_the_root_runs_the_demo(snakemake):
    run = snakemake("--dry-run", "--cores", "2", cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert job_counts(run.stdout + run.stderr)["all"] == 1


def test_a_tracking_address_with_a_typo_ends_the_run_before_its_first_job(snakemake, tmp_path, monkeypatch):
    monkeypatch.setenv("DPAR_TRACKING_URI", "sqlite:///relative.db")
    run = snakemake("--cores", "2", "--configfile", CONFIG / "demo.yaml")
    assert run.returncode != 0
    assert "must name the file by its whole path" in run.stdout + run.stderr
    assert not list((tmp_path / "results").rglob("events.jsonl"))


def test_the_slurm_profile_resolves_and_asks_for_each_rules_resources(snakemake):
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="the slurm extra is not installed")
    run = snakemake("--dry-run", "--profile", "slurm", cwd=ROOT)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "results/imagenet256.smoke/report.html" in run.stdout + run.stderr, "no target is named"
    assert "results/imagenet256/" not in run.stdout + run.stderr
    asked = asked_resources(run.stdout + run.stderr)
    assert {"train_model", "sample_images", "encode_images", "compute_metrics"} <= set(asked)
    for rule, resources in asked.items():
        if rule != "all":
            assert {"slurm_partition", "runtime", "mem_mb", "cpus_per_task"} <= set(resources), rule
    assert asked["train_model"]["gpu"] == "8"
    assert asked["train_model"]["slurm_partition"] == "gpu"
    assert asked["compute_metrics"]["slurm_partition"] == "cpu"


def test_jobs_without_a_partition_go_to_slurms_default(snakemake, tmp_path, monkeypatch):
    """As with a site's profile that replaces `default-resources`; the run ends at the next check."""
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="the slurm extra is not installed")
    for name, says in {"sinfo": "cpu infinite", "squeue": "7 dpar-1_uuid"}.items():
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\necho {says}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("DPAR_SLURM_RUN", "dpar-2")
    record = tmp_path / "results" / "demo" / "tracking" / "slurm_run"
    record.parent.mkdir(parents=True)
    record.write_text("dpar-1")
    command = ("all", "--executor", "slurm", "--jobs", "1", "--configfile", CONFIG / "demo.yaml")
    run = snakemake(*command)
    assert run.returncode != 0
    assert "Slurm still has jobs" in run.stdout + run.stderr
    run = snakemake(*command, "--default-resources", "slurm_partition=gpu")
    assert "asks for the partition gpu, which this cluster does not have; it has cpu" in run.stdout + run.stderr


def slurm_profile(monkeypatch):
    """What Snakemake reads; the name that it gives its run in the environment goes with the test."""
    monkeypatch.setenv("DPAR_SLURM_RUN", "dpar-test")
    return yte.process_yaml((ROOT / "slurm" / "config.yaml").read_text())


def test_the_slurm_profile_speaks_of_rules_that_exist(monkeypatch):
    profile = slurm_profile(monkeypatch)
    assert set(profile["set-resources"]) <= set(RULES)


def test_a_site_changes_what_one_rule_asks_of_slurm_and_keeps_the_rest(monkeypatch, tmp_path):
    (tmp_path / "site.yaml").write_text(
        "sample_images: {mem_mb: 128000, constraint: a100}\nverify_codes: {runtime: 30}\n"
    )
    plain = slurm_profile(monkeypatch)["set-resources"]
    monkeypatch.setenv("DPAR_SLURM_RESOURCES", str(tmp_path / "site.yaml"))
    changed = slurm_profile(monkeypatch)["set-resources"]
    assert changed.pop("verify_codes") == plain.pop("verify_codes") | {"runtime": 30}
    assert changed.pop("sample_images") == plain.pop("sample_images") | {"mem_mb": 128000, "constraint": "a100"}
    assert changed == plain


def test_no_job_asks_for_more_minutes_than_a_site_allows(monkeypatch):
    monkeypatch.setenv("DPAR_MINUTES", "50")
    profile = slurm_profile(monkeypatch)
    asked = {rule: resources["runtime"] for rule, resources in profile["set-resources"].items()}
    assert profile["default-resources"]["runtime"] == max(asked.values()) == 50
    assert asked["generate_images"] + asked["index_images"] == asked["index_codes"] + asked["verify_codes"] == 50


def test_over_several_nodes_a_training_asks_for_each_nodes_share(monkeypatch):
    monkeypatch.setenv("DPAR_GPUS", "16")
    monkeypatch.setenv("DPAR_NODES", "2")
    asked = slurm_profile(monkeypatch)["set-resources"]["train_model"]
    assert asked["gpu"] == 16
    assert asked["nodes"] == asked["tasks"] == 2
    assert (asked["cpus_per_task"], asked["mem_mb"]) == (64, 256000)
    assert "--gpus-per-node=8" in asked["slurm_extra"]


def test_trainings_that_start_together_share_the_cores(snakemake, tmp_path):
    for name, threads in (("demo", 1), ("photos64", 2)):
        run = snakemake("--dry-run", "--cores", "2", "--configfile", ROOT / "config" / f"{name}.yaml")
        jobs = re.findall(r"^(?:local)?rule train_model:\n((?:    .*\n)+)", run.stdout + run.stderr, re.M)
        assert jobs, run.stderr
        assert all(("threads: 2" in job) == (threads == 2) for job in jobs), name


def constant(name):
    """The value of a constant of common.smk."""
    (value,) = re.findall(rf"^{name} = (\(.*?^\)|.*?)$", (ROOT / "workflow/rules/common.smk").read_text(), re.M | re.S)
    return ast.literal_eval(value)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_the_log_holds_what_a_stage_says_after_a_signal_to_the_whole_job(tmp_path, number):
    """The shell line ends in `LOGGED` as the rules have it; only the stage answers the signal."""
    logged = constant("LOGGED")
    name = number.name.removeprefix("SIG")
    (tmp_path / "stage").write_text(f"trap 'echo saved; exit' {name}; echo ready; while :; do sleep 0.05; done")
    line = f"bash {tmp_path}/stage" + logged.format(log=tmp_path / "log")
    # the shell around the pipeline outlives the signal so that it is seen to end; a shell cannot trap what was ignored
    # when it began, as SIGINT is where the tests run in the background
    job = subprocess.Popen(
        ["bash", "-c", f"trap : {name}; {line}"],
        stdout=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    assert job.stdout is not None
    assert job.stdout.readline() == b"ready\n"
    os.killpg(job.pid, number)
    assert job.stdout.read().endswith(b"saved\n")
    job.wait(60)
    assert (tmp_path / "log").read_text().endswith("saved\n")


def test_a_stage_that_is_killed_says_what_that_may_mean(tmp_path):
    (tmp_path / "stage").write_text("kill -9 $$")
    text = f"{constant('PREFIX')} bash {tmp_path}/stage{constant('LOGGED')}"
    line = text.format(log=tmp_path / "log")
    run = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert run.returncode == 137
    assert run.stdout == (tmp_path / "log").read_text()
    assert re.fullmatch(r"error: killed .* more memory .*\n", run.stdout)


def test_an_experiment_without_a_name_is_not_taken_for_the_demo(snakemake, tmp_path):
    (tmp_path / "noname.yaml").write_text("sampling: {cfg_scale: 3}")
    run = snakemake("--dry-run", "--configfile", tmp_path / "noname.yaml")
    assert run.returncode != 0
    assert "name: missing" in run.stdout + run.stderr


def test_the_baseline_needs_neither_entropies_nor_thresholds(snakemake):
    run = snakemake("--dry-run", "--cores", "1", "results/demo/likelihood/llamagen/step400.json", cwd=ROOT)
    assert run.returncode == 0, run.stderr
    jobs = job_counts(run.stdout + run.stderr)
    assert jobs["train_model"] == 1
    assert {"score_entropies", "train_entropy_model", "calibrate_threshold"}.isdisjoint(jobs)


def test_a_training_is_told_the_milestone_that_it_goes_on_from(snakemake, tmp_path):
    path = tmp_path / "milestones.yaml"
    path.write_text(yaml.safe_dump(demo(training__milestones=[100, 200])))
    target = "results/demo/models/llamagen/step400/model.safetensors"
    run = snakemake("--dry-run", "--printshellcmds", "--cores", "1", "--configfile", path, "--", target)
    said = dict(re.findall(r"--milestone (\S+) .*? --previous (.*?) --state", run.stdout + run.stderr))
    files = {
        name: " ".join(f"results/demo/models/llamagen/{name}/{file}" for file in (WEIGHTS, MODEL_CONFIG))
        for name in said
    }
    assert said == {"step100": "", "step200": files["step100"], "step400": files["step200"]}


@pytest.mark.parametrize("name", ["fashion28", "imagenet384"])  # one that trains its tokenizer, one that imports it
def test_snakemakes_linter_has_nothing_to_say(snakemake, name):
    run = snakemake("--lint", "--configfile", CONFIG / f"{name}.yaml")
    assert "your workflow is in a good condition" in run.stdout + run.stderr, run.stdout + run.stderr
    assert run.returncode == 0


def test_rules_and_stages_and_recipes_have_the_same_names():
    stages = {path.stem for path in (ROOT / "dpar" / "stages").glob("*.py")} - {"__init__"}
    assert stages == set(RULES) == set(RECIPES)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_every_rule_is_documented_logged_and_tested(rule):
    text = RULES[rule].read_text()
    body = re.search(rf"rule {rule}:\n(.*?)(?=^ *rule |\Z)", text, re.M | re.S)
    assert body
    assert re.match(r'\s+"""[A-Z]', body[1]), "a docstring, shown by snakemake --list"
    assert re.search(r"^ +log:", body[1], re.M)
    assert re.match(rf'\s+(stage|training)\(\s*"{rule}",', body[1].split("shell:")[1]), (
        "the stage of the rule's own name"
    )
    assert (ROOT / "tests" / "stages" / f"test_{rule}.py").is_file()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"trainings": {}}, "trainings"),
        ({"images__resolution": 60}, "resolution"),
        ({"patchify__threshold": 3.0}, "p_avg"),
        ({"tables": {}}, "has no tables"),
    ],
)
def test_a_mistake_in_the_experiment_stops_before_anything_runs(snakemake, tmp_path, changes, named):
    path = tmp_path / "mistaken.yaml"
    path.write_text(yaml.safe_dump(demo(**changes)))
    run = snakemake("--cores", "1", "--configfile", path)
    assert run.returncode != 0
    assert named in run.stdout + run.stderr
    assert not (tmp_path / "results").exists()
