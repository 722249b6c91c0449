"""The announcement of a run before its first job: jobs by kind, trainings by name, time, disk, and why again."""

import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dpar.data.workers import cores
from dpar.errors import InputError
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
MOST_CHANGES = 5
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
    counts = Counter(job.rule for job in jobs)
    yield f"this run: {len(jobs)} jobs ({', '.join(worded(rule, count) for rule, count in counts.most_common())})"
    if trained := [f"{job.rule.removeprefix('train_')} {job.part}".strip() for job in jobs if job.rule in TRAININGS]:
        yield f"  trains   {', '.join(trained[:12])}{f', and {len(trained) - 12} more' if len(trained) > 12 else ''}"
    if bill is not None and bill.hours is not None:
        yield f"  takes    about {hours_in_words(bill.hours)} of {bill.device}, and {bill.bytes / 1e9:,.2f} GB on disk"
    yield from (f"  again    {line}" for line in again(jobs, changes))


def said_of_smoke(experiment: Experiment) -> str:
    """A line on what a smoke is."""
    return (
        f"smoke: every command of {experiment.name.removesuffix(SMOKE_SUFFIX)} once, on few images and steps, into "
        f"results/{experiment.name}; its numbers say nothing"
    )


def again(jobs: Iterable[Planned], changes: Changes) -> Iterator[str]:
    """Why finished work is done again, in settings."""
    for rule, count in Counter(job.rule for job in jobs if job.again).items():
        found = read_by([rule], changes) if rule in READS else changes
        said = [in_words(key, change) for key, change in found.items()]
        more = f", and {len(said) - MOST_CHANGES} other settings" if len(said) > MOST_CHANGES else ""
        why = ", ".join(said[:MOST_CHANGES]) + more if said else "the recipe of the stage is another one"
        yield f"{worded(rule, count)}, because {why}"


def worded(rule: str, count: int) -> str:
    """So many jobs of a rule, in words."""
    one, many = KINDS.get(rule, (rule, rule))
    return f"{count} {one if count == 1 else many}"


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
