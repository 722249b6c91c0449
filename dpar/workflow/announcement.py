"""The announcement of a run before its first job: jobs by kind, trainings by name, time, disk, and why again."""

import math
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dpar.data.workers import cores
from dpar.errors import InputError
from dpar.experiment.cells import model_cells
from dpar.experiment.settings import SMOKE_SUFFIX, Experiment, gate_folder
from dpar.workflow.journal import START, job_name

Changes = Mapping[str, tuple[Any, Any]]
"""Setting -> its value before and now."""

BUDGET = "DPAR_BUDGET"
"""The variable with the most hours of a GPU (on a CPU of the machine) that a run may begin with."""

KINDS = {
    "train_model": ("training", "trainings"),
    "sample_images": ("set of samples", "sets of samples"),
    "compute_metrics": ("measurement", "measurements"),
    "extract_features": ("set of features", "sets of features"),
    "encode_images": ("shard of codes", "shards of codes"),
    "score_entropies": ("shard of entropies", "shards of entropies"),
    "make_table": ("table", "tables"),
}
# Settings that a rule's recipe reads, where it is not all of them: by these a change says why it is out of date.
READS = {
    "index_images": ("images",),
    "train_tokenizer": ("tokenizer", "images.resolution", "seed"),
    "encode_images": ("codes", "images.resolution"),
    "train_entropy_model": ("entropy_model", "gates", "seed"),
    "calibrate_threshold": ("patchify",),
    "train_model": ("models", "training", "patchify", "seed"),
    "sample_images": ("sampling", "patchify", "evaluation.resolution"),
    "complete_images": ("sampling", "seed"),
    "train_classifier": ("evaluation", "seed"),
    "extract_features": ("evaluation", "seed"),
    "compute_metrics": ("evaluation", "seed"),
    "make_table": ("tables",),
}
# Jobs that are parts of one training, or of one set: by the last word of their part.
IN_PARTS = {"train_model": "milestones", "sample_images": "shards"}
MOST_KINDS = 7
MOST_CHANGES = 5
MOST_NAMED = 12
TRAININGS = ("train_tokenizer", "train_entropy_model", "train_model")


@dataclass(frozen=True)
class Planned:
    """A job that a run does.

    Attributes:
        rule: its name.
        part: what tells it apart, such as `dpar/step400`.
        again: whether it is done because its settings, or its recipe, changed.
    """

    rule: str
    part: str
    again: bool = False


@dataclass(frozen=True)
class Bill:
    """Hours of one device (None: not known), its name, bytes that are written, and seconds of each job by its name."""

    hours: float | None
    device: str
    bytes: float
    seconds: Mapping[str, float] = field(default_factory=dict)


class OverBudgetError(InputError):
    """A run that costs more than was said; `meant` is the budget, in whole hours, that it fits."""

    def __init__(self, text: str, meant: int):
        super().__init__(text)
        self.meant = meant


def announced(experiment: Experiment, planned: Iterable[Planned], bill: Bill | None, changes: Changes) -> Iterator[str]:
    """The lines that stand before the first job.

    Args:
        experiment: the one that is run.
        planned: the jobs, without the one that only gathers them.
        bill: what they cost.
        changes: setting -> its value before and now.
    """
    jobs = list(planned)
    if not jobs:
        return
    if experiment.is_smoke:
        yield said_of_smoke(experiment)
    yield from jobs_in_words(experiment, jobs)
    if bill is not None and bill.hours is not None:
        yield f"  takes    about {hours_in_words(bill.hours)} of {bill.device}, and {bill.bytes / 1e9:,.2f} GB on disk"
    yield from (f"  again    {line}" for line in again(jobs, changes))


def jobs_in_words(experiment: Experiment, jobs: Collection[Planned]) -> Iterator[str]:
    """The jobs by kind, and the trainings by name; of a dry run all that is said."""
    if jobs:
        said = counted(jobs)
        unnamed = {rule for rule, _ in said[MOST_KINDS:]}
        others = sum(job.rule in unnamed for job in jobs)
        kinds = [*(text for _, text in said[:MOST_KINDS]), *[f"{others} others"] * (others > 0)]
        yield f"this run: {len(jobs)} job{'s' * (len(jobs) > 1)} ({', '.join(kinds)})"
    if trained := trainings_in_words(experiment, jobs):
        yield f"  trains   {trained}"


def said_of_smoke(experiment: Experiment) -> str:
    """A line on what a smoke is."""
    return (
        f"smoke: every command of {experiment.name.removesuffix(SMOKE_SUFFIX)} once, on few images and steps, into "
        f"results/{experiment.name}; its numbers say nothing"
    )


def again(jobs: Iterable[Planned], changes: Changes) -> Iterator[str]:
    """Why finished work is done again, in settings."""
    for rule, text in counted(job for job in jobs if job.again):
        found = read_by([rule], changes) if rule in READS else changes
        said = [in_words(key, change) for key, change in found.items()]
        more = f", and {len(said) - MOST_CHANGES} other settings" if len(said) > MOST_CHANGES else ""
        why = ", ".join(said[:MOST_CHANGES]) + more if said else "the recipe of the stage is another one"
        yield f"{text}, because {why}"


def counted(jobs: Iterable[Planned]) -> list[tuple[str, str]]:
    """The rules of the jobs, those that have words first, each with its number of jobs in words.

    A training is one however many of its milestones are jobs, and so is a set of samples in shards.
    """
    parts: dict[str, list[str]] = {}
    for job in jobs:
        parts.setdefault(job.rule, []).append(job.part)
    rules = [*(rule for rule in KINDS if rule in parts), *sorted(parts.keys() - KINDS)]
    return [(rule, _worded(rule, parts[rule])) for rule in rules]


def _worded(rule: str, parts: Collection[str]) -> str:
    one, many = KINDS.get(rule, (rule, rule))
    wholes = {part.rpartition("/")[0] for part in parts} if rule in IN_PARTS else parts
    text = f"{len(wholes)} {one if len(wholes) == 1 else many}"
    return text if len(wholes) == len(parts) else f"{text} in {len(parts)} {IN_PARTS[rule]}"


def trainings_in_words(experiment: Experiment, jobs: Collection[Planned]) -> str:
    """The trainings among the jobs, models by name: `tokenizer; dpar, llamagen to epoch16 (seeds 0, 1, 2)`.

    A model is named once, with the last of its milestones and with its seeds; those that share both, together.
    """
    parts = {rule: sorted({job.part for job in jobs if job.rule == rule}) for rule in TRAININGS}
    cells = model_cells(experiment)
    planned: dict[str, tuple[list[str], set[int]]] = {}  # milestones and seeds of each model
    for slug, milestone in (part.split("/") for part in parts["train_model"]):
        seed = cells[slug].seed
        name = slug if seed == experiment.seed else slug.removesuffix(f"_seed{seed}")
        milestones, seeds = planned.setdefault(name, ([], set()))
        milestones.append(milestone)
        seeds.add(seed)
    names = sorted(planned, key=_by_number)
    alike: dict[str, list[str]] = {}
    for name in names[:MOST_NAMED]:
        milestones, seeds = planned[name]
        how = f"to {max(milestones, key=cells[name].milestones.index)}"
        if experiment.training_seeds:
            how += f" (seed{'s' * (len(seeds) > 1)} {', '.join(map(str, sorted(seeds)))})"
        alike.setdefault(how, []).append(name)
    said = ["tokenizer" for _ in parts["train_tokenizer"]] + parts["train_entropy_model"]
    said += [f"{', '.join(named)} {how}" for how, named in alike.items()]
    said += [f"{more} more models"] if (more := len(names) - MOST_NAMED) > 0 else []
    return "; ".join(said)


def _by_number(name: str) -> list[Any]:
    """A key that sorts numbers in names as numbers."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def changed_settings(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> Changes:
    """Settings that differ between two resolved experiments, by their key; none where nothing was before.

    A group that one of the two lacks, such as a model or a table, is one setting.
    """
    return {} if before is None else dict(_changed(before, now))


def _changed(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key in {**before, **now}:
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _changed(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}", (old, new)


def read_by(rules: Collection[str], changes: Changes) -> Changes:
    """The changes of settings that one of these rules reads; of rules that are not listed, what no listed one reads."""

    def among(key: str, listed: Iterable[str]) -> bool:
        return any(f"{key}.".startswith(f"{name}.") for rule in listed for name in READS.get(rule, ()))

    others = any(rule not in READS for rule in rules)
    return {k: v for k, v in changes.items() if among(k, rules) or (others and not among(k, READS))}


def in_words(key: str, change: tuple[Any, Any]) -> str:
    """A change of a setting, or of a group that came or went."""
    old, new = change
    if isinstance(new, Mapping) and old is None:
        return f"{key} is new"
    if isinstance(old, Mapping) and new is None:
        return f"{key} is gone"
    return f"{key} was {_said(old)} and is {_said(new)}"


def _said(value: Any) -> str:
    if value is None:
        return "not set"
    return f"{value:g}" if isinstance(value, float) else str(value)[:60]


def bill_of(
    experiment: Experiment, jobs: Iterable[tuple[str, Mapping[str, str]]], images: tuple[int, int], *, here: bool
) -> Bill:
    """The cost of those of the jobs that take more than minutes.

    Args:
        jobs: rule and wildcards of each.
        images: for training, and held out.
        here: on this machine, by a training step that is timed now; else on an A100, by the rates of `dpar plan`.
    """
    from dpar.workflow import planning  # with PyTorch, which takes seconds

    keys = [(job_name(rule, wildcards), key) for rule, wildcards in jobs for key in _keys(rule, wildcards)]
    wanted = Counter(key for _, key in keys)  # a set of samples is that of all its shards
    try:
        asked = ["report", *experiment.requested_tables]
        every = {k: job for t in asked for k, job in planning.jobs(experiment, t, planning.Data(*images, {})).items()}
    except InputError:  # how many patches there are is not known yet
        return Bill(None, "", 0.0)
    found = {key: job for key, job in every.items() if key in wanted}
    if not found:
        return Bill(0.0, "", 0.0)
    if here:
        from dpar.device import default_device
        from dpar.workflow.speed import timed_rates

        rates = timed_rates(experiment)
        device = "this machine's GPU" if default_device().type == "cuda" else "this machine"
    else:
        rates, device = planning.ASSUMED, "an A100, in GPU-hours"
    seconds = dict.fromkeys((name for name, _ in keys), 0.0)
    for name, key in keys:
        seconds[name] += 3600 * rates.hours([found[key]]) / wanted[key] if key in found else 0
    hours = rates.hours(found.values()) + (len(seconds) * START / cores() / 3600 if here else 0)
    return Bill(hours, device, sum(job.bytes for job in found.values()), seconds)


def _keys(rule: str, wildcards: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    """The names that a job has in a plan."""
    if rule in ("train_model", "linear_probe"):
        yield rule, wildcards["model"], wildcards["milestone"]
    elif rule == "train_entropy_model":
        network = wildcards["network"]
        yield (rule,) if network == gate_folder(None) else (rule, network.removeprefix("gates/"))
    elif rule == "sample_images":
        yield rule, wildcards["cell"], wildcards["seed"]
        yield "pixels", wildcards["cell"], wildcards["seed"]
    elif rule == "extract_features":
        cell, _, seed = wildcards["features"].partition("/seed")
        yield rule, cell, seed
    else:
        yield (rule,)


def check_budget(bill: Bill, given: str | None, approved: Callable[[str], bool] = lambda _: False) -> None:
    """Refuses a run that costs more than was said, unless that is approved.

    Args:
        bill: of the run.
        given: the budget in hours of a device, as the environment has it; None = none.
        approved: asked with the bill in words, where there is somebody to ask.

    Raises:
        OverBudgetError: it is less than the bill.
        InputError: it is no number.
    """
    if given is None:
        return
    try:
        if math.isnan(budget := float(given)):
            raise ValueError
    except ValueError:
        raise InputError(f"{BUDGET}: found {given!r}; expected hours of a GPU, such as 100") from None
    if bill.hours is not None and bill.hours > budget:
        meant = math.ceil(1.2 * bill.hours)
        takes = f"this run takes about {hours_in_words(bill.hours)} of {bill.device}, more than the budget of"
        if not approved(f"{takes} {budget:g} hours"):
            raise OverBudgetError(
                f"{takes} {budget:g} hours; nothing was started. Name a target that costs less (see `dpar plan`), or "
                f"say that it is meant: `dpar run --budget {meant}`, or {BUDGET}={meant} for snakemake",
                meant,
            )


def somebody_asks() -> bool:
    """Whether a person sits at a terminal and can answer."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def approved(bill: str) -> bool:
    """Whether the person at the terminal wants what `bill` says."""
    print(f"{bill}. Start it? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def hours_in_words(hours: float) -> str:
    """Hours for people."""
    if hours < 1:
        return f"{max(1, round(60 * hours))} min"
    return f"{hours:,.1f} hours"


def budget_given() -> str | None:
    """The budget in the environment."""
    return os.environ.get(BUDGET) or None
