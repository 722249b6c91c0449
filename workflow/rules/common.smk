"""What the rules share: the experiment, its cells, paths, and what makes a stage out of date."""

import json
import os
import subprocess
import sys

from pathlib import Path

from dpar import checks
from dpar.commands.run import LOCKED, RETRAIN, only_run, retraining
from dpar.config import FIGURES, TRAINING_PACE, gate_folder, parse_experiment, read_yaml
from dpar.errors import InputError, refusal_of_disk
from dpar.files import digest, unmarked, write_json
from dpar.grid import described_models, figure_rows, gated_cells, model_cells, p_avg_targets, sample_cells, table_rows
from dpar.recipes import recipe_number
from dpar.report import paper
from dpar.report.targets import COMPUTED, metric_files, pareto_file, sized_tables, table_files
from dpar.slurm import check_partitions, longest_jobs, only_jobs
from dpar.tracking.store import find_store

if {"{", "}"} & set(str(workflow.basedir)):  # in a path of its own, Snakemake takes them for a wildcard
    raise WorkflowError(
        f"the checkout {workflow.basedir} has braces in its path, with which Snakemake cannot work; move it"
    )


def read_experiment():
    try:
        for path in workflow.configfiles:
            read_yaml(path)  # which refuses what Snakemake reads past, such as a key that is there twice
        experiment = parse_experiment(unmarked(config), " + ".join(map(str, workflow.configfiles)) or "the configuration")
        checks.refuse(experiment, to_make=())  # by the file alone: a dry run needs no data
        if not sample_cells(experiment):
            raise InputError(f"experiment {experiment.name} has no tables: it would train models and compare nothing")
        return experiment
    except InputError as error:
        raise WorkflowError(str(error))


EXPERIMENT = read_experiment()
RESULTS = f"results/{EXPERIMENT.name}"
MODELS = model_cells(EXPERIMENT)
SAMPLES = sample_cells(EXPERIMENT)
SPLITS = ("train", "val")
LOCKS = []
# All DPARs wait for the same entropies: together they fill the cores, where one machine runs all jobs.
TRAINING_THREADS = max(
    1, (workflow.resource_settings.cores or 1) // max(1, sum(cell.transformer.is_dpar for cell in MODELS.values()))
)
SHARD_COUNT = {
    "train": EXPERIMENT.codes.train_shards,
    "val": EXPERIMENT.codes.val_shards,
}
SHARD_SUFFIX = {"parquet": "parquet", "webdataset": "tar"}[EXPERIMENT.codes.format]
# What costs the most, and is never done again without being told.
TRAININGS = ("train_tokenizer", "train_entropy_model", "train_model")
MODEL_FILES = ("model.safetensors", "config.json")
# A stage has its rule's name; a training may need several processes.
STAGE = f"python -m dpar.stages.{{rule}} --experiment {RESULTS}/experiment.json"
# The shell around it outlives the signals that ask it to save its state, and so does its job.
TRAINING = (
    "trap : INT TERM USR1 HUP; "
    "python -m dpar.launch --gpus {resources.gpu} --nodes {resources.nodes} --cpus {resources.cpus_per_task}"
    f" dpar.stages.{{rule}} --experiment {RESULTS}/experiment.json"
)
# The rules' `python` is the one that runs Snakemake, unless --sdm conda puts its own before it.
os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
# One log a job: everything the stage says, on the screen and in the file; tee outlives the signals that ask a stage to
# stop, so that one that saves its state on the way out can still say so.
LOGGED = " 2>&1 | (trap '' INT TERM USR1 HUP; exec tee {log}) || ended $? {log}"
PREFIX = (
    "set -euo pipefail; "
    "ended() {{ if [ $1 = 137 ]; then echo 'error: killed (SIGKILL) by somebody, or for needing more memory than there"
    " was; see docs/slurm.md on mem_mb' | tee -a $2; fi; return $1; }}; "
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


def recipe(stage, *settings, architecture=None):
    """What makes the stage's outputs out of date: its number, that of the network it trains, the settings it reads."""
    plain = [s.model_dump(mode="json") if hasattr(s, "model_dump") else s for s in settings]
    return f"{recipe_number(stage, architecture)}.{digest(plain)}"


def without(settings, *names):
    """`settings` but for those that do not decide what is computed."""
    return settings and settings.model_dump(mode="json", exclude=set(names))


def with_any_attention(transformer):
    """`transformer` whatever back end attends, which only rounds differently; `auto`, as most recipes have had it."""
    return transformer.model_copy(update={"attention": "auto"})


def shards(store, split):
    return [f"{RESULTS}/{store}/{split}/{i:05d}.{SHARD_SUFFIX}" for i in range(SHARD_COUNT[split])]


def folder(path):
    """The files of the model folder at `path`."""
    return [f"{RESULTS}/{path}/{name}" for name in MODEL_FILES]


def user_path(path):
    """A path of the user's as a stage's flag takes it: `~` is a folder, and a dash at its beginning no flag."""
    path = os.path.expanduser(path)
    return f"./{path}" if path.startswith("-") else path


def gate_files(gate):
    """What sampling needs of that network; the threshold of the entropy model belongs to the patches."""
    return folder(gate_folder(gate)) + ([f"{RESULTS}/{gate_folder(gate)}.thresholds.json"] if gate else [])


def is_gated(patchify, transformer):
    """Whether an entropy model decides where patches begin."""
    return transformer.is_dpar and patchify.is_dynamic


def threshold_file(p_avg):
    return f"{RESULTS}/thresholds/pavg{p_avg}.json"


def threshold_of_cell(model, patchify):
    """The file of the threshold, where one has to be calibrated for this model with these patches."""
    gated = is_gated(patchify, MODELS[model].transformer)
    return [threshold_file(patchify.p_avg)] if gated and patchify.p_avg is not None else []


def in_words(*steps):
    """Takes the steps; what is refused, by the program or by the disk, ends the run with a line and no traceback."""
    for step in steps:
        try:
            step()
        except (InputError, OSError) as error:
            raise WorkflowError(refusal_of_disk(error) or str(error))


def lock_results():
    """One run at a time works on these results; `dpar run` has locked those that it names, and said what changed."""
    if os.environ.get(LOCKED) != os.path.realpath(RESULTS):
        from dpar.data.changes import say_changes  # takes as long as the rest, and every job reads this file

        lock = only_run(Path(RESULTS))
        LOCKS.append(lock)  # held until this process ends
        lock.__enter__()
        say_changes(Path(RESULTS))


def planned_trainings():
    """The trainings that this run does, each with Snakemake's reason."""
    jobs = [] if workflow.touch else workflow.dag.needrun_jobs()
    return [(job, workflow.dag.reason(job)) for job in jobs if job.rule.name in TRAININGS]


def begin_forced_trainings():
    """Sets the states of finished trainings aside that `--forcerun` and its kin ask for: they would be found complete.

    Outputs go with them, which Snakemake would remove later: where one is missing a forced training was interrupted,
    and the same command goes on with it.
    """
    forced = {}
    for job, reason in planned_trainings():
        if reason.forced:
            forced.setdefault(str(job.params.state), []).extend(map(str, job.output))
    for state, outputs in forced.items():
        if os.path.exists(state) and all(map(os.path.exists, outputs)):
            set_aside_by_force(Path(state), outputs)


def set_aside_by_force(state, outputs):
    from dpar.train.checkpoint import only_training, set_aside  # takes seconds to import

    with only_training(state):
        set_aside(state, f"{os.path.dirname(outputs[0])} is finished, and forced")
        for path in outputs:
            os.unlink(path)


def check_experiment():
    """Before the first job: what would stop a later one, as far as that is known now."""
    jobs = [] if workflow.touch else workflow.dag.needrun_jobs()
    unknown = checks.refuse(EXPERIMENT, to_make={str(path) for job in jobs for path in job.output})
    for line in unknown:
        print(f"not checked: {line}", file=sys.stderr)


def guard_trainings():
    """Says which finished trainings this run would do again, and stops unless that is meant."""
    again = {}
    for job, reason in planned_trainings():
        if all(map(os.path.exists, job.output)) and not (reason.forced or reason.incomplete_output):
            again[os.path.dirname(job.output[0])] = ", ".join(reason.get_names())
    if again and RETRAIN not in os.environ:
        raise WorkflowError(retraining(again, meant=False))
    if again:
        print(retraining(again, meant=True), file=sys.stderr)


def check_slurm():
    """Before the first job: that Slurm is there, has room for every job, and works on no job of a run before.

    The profile names the run in DPAR_SLURM_RUN.
    """
    if "DPAR_SLURM_RUN" in os.environ:
        asked = [(job.rule.name, job.resources) for job in workflow.dag.needrun_jobs() if not job.is_local]
        longest = longest_jobs()
        check_partitions(((name, r.get("slurm_partition"), r.get("runtime")) for name, r in asked), longest)
        only_jobs(Path(RESULTS, "tracking", "slurm_run"), os.environ["DPAR_SLURM_RUN"])


def tracking_command(*arguments):
    return [sys.executable, "-m", "dpar.cli", "track", *arguments, "--results", RESULTS]


def write_experiment():
    """The experiment, checked and with every default, for the stages to read.

    It is no input of any rule: what makes a stage out of date is its recipe, which holds the settings that it reads.
    """
    write_json(f"{RESULTS}/experiment.json", EXPERIMENT.model_dump(mode="json"))


def start_tracking():
    """Carries spools into MLflow every few seconds while the graph runs, so that curves can be watched.

    An address with a typo ends the run here; one that does not answer is said once, and its records wait on disk.
    """
    if workflow.touch:  # no stage runs
        return
    store = find_store(RESULTS)
    if not store.embedded and subprocess.call(tracking_command("sync")) != 0:
        print(f"tracking: the run goes on without {store.describe()}; the records wait in {RESULTS}/tracking/spool")
    os.makedirs(f"{RESULTS}/tracking", exist_ok=True)
    with open(f"{RESULTS}/tracking/sync.log", "ab") as log:
        subprocess.Popen(
            tracking_command("sync", "--watch", "20", "--until-pid", str(os.getpid())),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def finish_tracking():
    """Carries the last spools into MLflow; a store that cannot be reached costs a line, never the results."""
    status = 0 if workflow.touch else subprocess.call(tracking_command("sync"))
    if status == 1:  # what cannot be shown at all has just been named
        print("tracking: MLflow lacks what is named above, and has everything else")
    elif status != 0:
        print(f"tracking: some records wait in {RESULTS}/tracking/spool; what is said above keeps them from MLflow")
