"""Shared by the rules: the experiment, its cells, paths, and what makes a stage out of date."""

import json
import os
import subprocess
import sys

from pathlib import Path

from dpar.workflow import announcement, checks, journal
from dpar.workflow.run import COMPARED, LOCKED, RETRAIN, run_lock, retraining, smoke_of_run
from dpar.experiment.settings import FIGURES, TRAINING_PACE, gate_folder
from dpar.experiment.smoke import composed
from dpar.errors import InputError, refusal_of_disk
from dpar.files import digest, read_json, unmarked, write_json
from dpar.experiment.cells import (
    analysed_cells,
    described_models,
    figure_rows,
    gated_cells,
    model_cells,
    p_avg_targets,
    sample_cells,
    table_rows,
)
from dpar.workflow.provenance import expect_records
from dpar.workflow.recipes import recipe_number
from dpar.workflow.user_paths import expect_same_files
from dpar.report import paper
from dpar.report.targets import COMPUTED, metric_files, pareto_file, sized_tables, table_files
from dpar.workflow.slurm import check_partitions, longest_jobs, claim_jobs
from dpar.mirror.store import find_store
from dpar.tracking.settings import RUNNING, running

if {"{", "}"} & set(str(workflow.basedir)):  # in a path of its own, Snakemake takes them for a wildcard
    raise WorkflowError(
        f"the checkout {workflow.basedir} has braces in its path, with which Snakemake cannot work; move it"
    )


def named_targets():
    """The targets on the command line, of which Snakemake says nothing to a Snakefile."""
    from snakemake.cli import get_argument_parser

    return get_argument_parser().parse_args(sys.argv[1:]).targets


def read_experiment():
    try:
        # the files themselves, not what Snakemake made of them: it takes a key that is there twice, and no `extends`
        smoke = smoke_of_run(named_targets)
        experiment, places = composed(workflow.configfiles, config=workflow.config_settings.config, smoke=smoke)
        checks.refuse(experiment, to_make=(), places=places)  # by the file alone: a dry run needs no data
        if not sample_cells(experiment):
            raise InputError(f"experiment {experiment.name} has no tables: it would train models and compare nothing")
        return experiment, places
    except InputError as error:
        raise WorkflowError(str(error))


EXPERIMENT, PLACES = read_experiment()
RESULTS = f"results/{EXPERIMENT.name}"  # in the rules' inputs, outputs and logs: <results>


def compare_with_results():
    """What makes the results others than the experiment's though Snakemake says that nothing is to be done.

    That is settings that changed where its own records are gone, and another file of weights, of a network that measures
    or of a reference. `dpar run` has asked before, and jobs belong to a run that has.
    """
    if workflow.is_main_process and os.environ.get(COMPARED) != os.path.realpath(RESULTS):
        try:
            expect_same_files(EXPERIMENT, Path(RESULTS))
            expect_records(Path(RESULTS), EXPERIMENT.model_dump(mode="json"), sys.argv[1:])
        except InputError as error:
            raise WorkflowError(str(error))


compare_with_results()


pathvars:
    results=RESULTS,


MODELS = model_cells(EXPERIMENT)
SAMPLES = sample_cells(EXPERIMENT)
ANALYSED = analysed_cells(EXPERIMENT)
SPLITS = ("train", "val")
LOCKS = []
BILLS = []
# All DPARs wait for the same entropies: together they fill the cores, where one machine runs all jobs.
TRAINING_THREADS = max(
    1, (workflow.resource_settings.cores or 1) // max(1, sum(cell.transformer.is_dpar for cell in MODELS.values()))
)
SHARD_COUNT = {
    "train": EXPERIMENT.codes.train_shards,
    "val": EXPERIMENT.codes.val_shards,
}
SHARD_SUFFIX = {"parquet": "parquet", "webdataset": "tar"}[EXPERIMENT.codes.format]
# Priorities: what the first page waits for (`write_first_report`) comes before classifier, metrics and grids.
FIRST = 10
# The most expensive rules, never done again without being told.
TRAININGS = ("train_tokenizer", "train_entropy_model", "train_model")
MODEL_FILES = ("model.safetensors", "config.json")
# The rules' `python` is the one that runs Snakemake, unless --sdm conda puts its own before it.
os.environ.update(PATH=os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)]))
# One log per job: everything the stage says, on the screen and in the file; tee outlives the signals that ask a stage to
# stop, so that one that saves its state on the way out can still say so.
LOGGED = " 2>&1 | (trap '' INT TERM USR1 HUP; exec tee {log}) || ended $? {log}"
PREFIX = (
    "set -euo pipefail; "
    "ended() {{ if [ $1 = 137 ]; then echo 'error: killed (SIGKILL) by somebody, or for needing more memory than there"
    " was; see docs/cluster.md on mem_mb' | tee -a $2; fi; return $1; }}; "
)
shell.prefix(PREFIX)


wildcard_constraints:
    split="train|val",
    store="codes|scored",
    shard=r"\d{5}",
    model="|".join(map(re.escape, MODELS)),
    cell="|".join(map(re.escape, SAMPLES)) or "none",
    milestone=r"(step|epoch)\d+",
    p_avg=r"\d+\.\d+(e-?\d+)?",
    seed=r"\d+",
    features=r"reference|[^/]+/seed\d+",
    table="|".join(map(re.escape, EXPERIMENT.tables)) or "none",
    figure="|".join(["samples", *map(re.escape, EXPERIMENT.figures)]),
    gate="|".join(map(re.escape, EXPERIMENT.gates)) or "none",


def stage(name, flags):
    """The shell command of the stage `name`, which is its rule's name too."""
    return f"python -m dpar.stages.{name} --experiment {RESULTS}/experiment.json {flags}{LOGGED}"


def training(name, flags):
    """The same for a stage of as many processes as its job has GPUs.

    The shell around them outlives the signals that ask them to save their state, and so does the job.
    """
    return (
        "trap : INT TERM USR1 HUP; "
        "python -m dpar.workflow.launch --gpus {resources.gpu} --nodes {resources.nodes} --cpus {resources.cpus_per_task}"
        f" dpar.stages.{name} --experiment {RESULTS}/experiment.json {flags}{LOGGED}"
    )


def in_results(path):
    """The folder `path` below the results as a parameter; wildcards are filled in.

    It depends on wildcards alone: a parameter that is a function of `input` or `output` is not recorded by Snakemake,
    which would take finished results for changed.
    """
    return lambda wildcards: f"{RESULTS}/{path.format(**dict(wildcards.items()))}"


def shards(store, split):
    return [f"<results>/{store}/{split}/{i:05d}.{SHARD_SUFFIX}" for i in range(SHARD_COUNT[split])]


def folder(path):
    """The files of the model folder at `path`."""
    return [f"<results>/{path}/{name}" for name in MODEL_FILES]


def user_path(path):
    """A path of the user's as a stage's flag takes it: `~` is a folder, and a dash at its beginning no flag."""
    path = os.path.expanduser(path)
    return f"./{path}" if path.startswith("-") else path


def gate_files(gate):
    """Settings of that network that sampling needs; the threshold of the entropy model belongs to the patches."""
    return folder(gate_folder(gate)) + ([f"<results>/{gate_folder(gate)}.thresholds.json"] if gate else [])


def is_gated(patchify, transformer):
    """Whether an entropy model decides where patches begin."""
    return transformer.is_dpar and patchify.is_dynamic


def threshold_file(p_avg):
    return f"<results>/thresholds/pavg{p_avg}.json"


def threshold_of_cell(model, patchify):
    """The file of the threshold, where one has to be calibrated for this model with these patches."""
    gated = is_gated(patchify, MODELS[model].transformer)
    return [threshold_file(patchify.p_avg)] if gated and patchify.p_avg is not None else []


if EXPERIMENT.evaluation.extractor == "classifier":
    EXTRACTOR = f"{RESULTS}/classifier"
    EXTRACTOR_FILES = folder("classifier")
else:
    EXTRACTOR = EXPERIMENT.evaluation.inception_weights or EXPERIMENT.evaluation.extractor
    EXTRACTOR_FILES = []  # the user's file: a path in the experiment, checked by the stage
