"""Room for a run on this machine: disk, the cache of codes, and memory of its largest job."""

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from dpar.data.codes import cache_folder
from dpar.errors import InputError
from dpar.evaluation import cost
from dpar.experiment.settings import Experiment, Training
from dpar.model.llamagen import TransformerConfig
from dpar.train.footprint import training_bytes
from dpar.workflow.planning import CODE_BYTES, ENTROPY_BYTES, Data, assumed_patches, jobs
from dpar.workflow.problems import Problem

LEAST_SPACE = 2**20  # bytes, below which a disk counts as full


def problems(experiment: Experiment, results: Path, data: Data, *, here: bool = True) -> Iterator[Problem]:
    """Too little space or memory for what is planned.

    Args:
        results: the experiment's folder, whose disk is looked at.
        here: whether the jobs run on this machine, whose memory counts then.
    """
    yield from disk(experiment, results, data)
    if here:
        yield from memory(experiment)


def disk(experiment: Experiment, results: Path, data: Data) -> Iterator[Problem]:
    """Results, and the flat files of codes that trainings read, compared with the free space."""
    try:
        planned = sum(job.bytes for job in jobs(experiment, "report", data).values())
    except InputError:
        return  # how many patches there are is not known: the plan says so
    views = data.train * experiment.codes.views + data.val
    cached = views * math.prod(experiment.grid) * (CODE_BYTES + ENTROPY_BYTES)
    there = sum(path.stat().st_size for path in results.rglob("*") if path.is_file()) if results.is_dir() else 0
    free = shutil.disk_usage(_existing(results)).free
    needed = max(0, planned - cached - there)
    if needed > free:
        remedy = "free some, draw fewer samples, or run it elsewhere with --directory"
        yield Problem("results", f"{_gigabytes(free)} free for {results}", f"{_gigabytes(needed)} by the plan", remedy)
    try:
        cache = cache_folder()
    except InputError as error:
        yield Problem("DPAR_CACHE", str(error), "a folder of yours", "set it")
        return
    free = shutil.disk_usage(_existing(cache)).free
    if cached > free:
        remedy = "set DPAR_CACHE to a folder on another disk, or free some"
        yield Problem("DPAR_CACHE", f"{_gigabytes(free)} free for {cache}", f"{_gigabytes(cached)} of codes", remedy)


def memory(experiment: Experiment) -> Iterator[Problem]:
    """Trainings whose step takes more memory than a device here has, by the trainer's own formula."""
    there, what = memory_here()
    gpus = max(1, torch.cuda.device_count())
    patches = expected_patches(experiment)
    trainings: dict[str, tuple[TransformerConfig, Training]] = {
        f"models.{name}": (cost.network(experiment, model), experiment.training)
        for name, model in experiment.models.items()
    }
    for folder, network in experiment.networks.items():
        if network.training is not None:
            gate = folder.removeprefix("gates/") if folder.startswith("gates/") else None
            trainings[folder.replace("/", ".")] = (cost.entropy_network(experiment, gate), network.training)
    for key, (config, training) in trainings.items():
        parameters = cost.parameters_of(config)  # type: ignore[arg-type]  # frozen: it has a hash
        if (needed := training_bytes(config, parameters, patches, training, gpus=gpus)) > there:
            allowed = f"at most the {_gigabytes(there)} of {what}"
            remedy = f"raise training.accumulate (now {training.accumulate}), or take a smaller network"
            yield Problem(key, f"a training of about {_gigabytes(needed)}", allowed, remedy)


def expected_patches(experiment: Experiment) -> float:
    """Mean patches per image as the plan has them; as few as there can be where they are not known beforehand."""
    try:
        return assumed_patches(experiment, experiment.patchify)
    except InputError:
        tokens = math.prod(experiment.grid)
        return tokens / (experiment.patchify.max_length or tokens)


def memory_here() -> tuple[float, str]:
    """The memory of the device that would train here, in bytes, and its name."""
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        return found.total_memory, found.name
    return float(psutil.virtual_memory().total), "this machine"


def no_space(results: Path) -> str:
    """Words on a full disk, of which logs and journal have lost what they would say; empty if it is not full."""
    place = _existing(results)
    free = shutil.disk_usage(place).free
    return f"; no space is left in {place} ({free:,} bytes): free some" if free < LEAST_SPACE else ""


def _existing(path: Path) -> Path:
    path = Path(os.path.abspath(path))
    while not path.exists():
        path = path.parent
    return path


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.0f} MB"
