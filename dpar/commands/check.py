"""Says all that would stop a run or make its numbers worthless, at once: every problem with its key and line."""

import argparse
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from dpar.data.class_names import numbered_as
from dpar.data.images import ImageIndex, open_images, shared_images
from dpar.data.manifest import Manifest
from dpar.data.subsets import held_out
from dpar.errors import InputError
from dpar.experiment.settings import Experiment
from dpar.workflow.announcement import said_of_smoke
from dpar.workflow.checks import Findings, located, look, machine
from dpar.workflow.image_checks import MOST_SHARED, NEXT
from dpar.workflow.options import Parser, add_directory, add_experiment, read_experiment
from dpar.workflow.problems import Problem
from dpar.workflow.slurm import longest_jobs
from dpar.workflow.user_paths import SPLITS, from_jobs

PORT = 5000  # of `dpar track ui`


def parser() -> argparse.ArgumentParser:
    """The options of this command."""
    options = Parser(prog="dpar check", description=__doc__)
    add_experiment(options)
    add_directory(options)
    options.add_argument("--deep", action="store_true", help="also read every image and every shard that is there")
    options.add_argument(
        "--slurm", action="store_true", help="jobs go to Slurm: its partitions, not this machine's memory"
    )
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Looks, and says what is in order.

    Raises:
        InputError: every problem, one per line.
    """
    args = parser().parse_args(argv)
    experiment, places = read_experiment(args)
    found = look(experiment, args.directory)
    problems = [*found.problems, *machine(experiment, args.directory, found, here=not args.slurm)]
    problems += partitions() if args.slurm else []
    problems += deep(experiment, args.directory) if args.deep else []
    for line in [*found.unknown, *notes()]:
        print(f"not checked: {line}" if line in found.unknown else line)
    if problems:
        lines = "".join(f"\n  {located(problem, places)}" for problem in dict.fromkeys(problems))
        raise InputError(f"experiment {experiment.name} cannot be run as it is written:{lines}")
    if experiment.is_smoke:
        print(said_of_smoke(experiment))
    print(f"{experiment.name}: nothing is wrong with it{counted(found)}")


def counted(found: Findings) -> str:
    """The images that were found, in words."""
    known = [f"{sum(counts):,} images {split}" for split, counts in found.counts.items() if counts]
    return f" ({', '.join(known)})" if known else ""


def notes() -> Iterator[str]:
    """Hints, line by line, that stop no run."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", PORT)) == 0:
            yield f"port {PORT} is in use: open the dashboard with `dpar track ui --port N`"


def partitions() -> Iterator[Problem]:
    """Partitions of the profile that this cluster does not have.

    Raises:
        InputError: there is no Slurm here.
    """
    known = longest_jobs()
    for variable, default in (("DPAR_CPU_PARTITION", "cpu"), ("DPAR_GPU_PARTITION", "gpu")):
        for name in os.environ.get(variable, default).split(","):
            if name not in known:
                allowed = f"one of this cluster's partitions: {', '.join(known)}"
                yield Problem(variable, f"{name!r}", allowed, f"export {variable}=NAME (docs/cluster.md)")


def deep(experiment: Experiment, directory: Path) -> Iterator[Problem]:
    """Images that cannot be read, are in both splits or have classes that do not fit, and shards that changed."""
    images = experiment.images
    if images.generated is None:
        yield from _every_image(experiment, directory)
    for store in ("codes", "scored"):
        for split in SPLITS:
            path = directory / "results" / experiment.name / store / split / "manifest.json"
            if path.is_file():
                try:
                    Manifest.load(path).verify()
                except InputError as error:
                    yield Problem(str(path), str(error), "the shards that it lists", "delete it and run again")


def _every_image(experiment: Experiment, directory: Path) -> Iterator[Problem]:
    images, indices = experiment.images, []
    for split in SPLITS:
        path = from_jobs(images.path(split) or "", directory)
        try:
            found = open_images(images.source, path, every_class=split == "train")
            if images.held_out is not None:
                found = found.keep((held_out(found, images.held_out) == (split == "val")).nonzero()[0])
            found = numbered_as(found, indices[0].images.classes) if indices else found
            index = ImageIndex.build(
                found, resolution=images.resolution, num_classes=images.num_classes,
                max_unreadable=images.max_unreadable, every_class=split == "train",
            )  # fmt: skip
        except InputError as error:
            yield Problem(f"images.{split}", str(error), "images that can be read, of known classes", "mend them")
            return
        indices.append(index)
    shared = shared_images(indices[1], indices[0])
    if len(shared) > MOST_SHARED * len(indices[1]) and not images.allow_shared:
        found = f"{len(shared)} of {len(indices[1])} held-out images that are training images too, byte for byte"
        yield Problem("images.val", found, "images that are not trained on", NEXT)
