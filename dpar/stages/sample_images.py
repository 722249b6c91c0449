"""Draws one shard of images with classifier-free guidance (Algorithm 2).

Image i of a set of samples has a seed and a label of its own, so shards, batches and processes do not change it, but
for what the size of a batch does to rounding: the file says in which batches it was drawn. Batches are kept as they are
finished: the same command goes on after the last one.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from dpar import tracking
from dpar.data.images import ImageIndex
from dpar.data.parts import Parts
from dpar.device import default_device
from dpar.errors import InputError, run_command
from dpar.experiment.cells import SampleCell, merged_thresholds, sample_cell
from dpar.experiment.settings import Experiment, Sampling, gate_folder
from dpar.files import digest, write_bytes
from dpar.patches.rule import PatchRule
from dpar.sampling.archive import keep, kept, write_samples
from dpar.sampling.drawing import ImageSampler
from dpar.sampling.guidance import DrawSettings
from dpar.sampling.networks import Networks, gate_threshold, gate_thresholds, load_networks
from dpar.sampling.picture import class_rows, contact_sheet
from dpar.sampling.request import Request, request
from dpar.tracking.makers import Wanted
from dpar.weights import model_config
from dpar.workflow import jobs
from dpar.workflow.recipes import RECIPES
from dpar.workflow.stage import THRESHOLDS, Run, Stage, flag

COLUMNS, ROWS = 8, 10  # of the picture

STAGE = Stage(
    "sample_images",
    __doc__,
    flag("--cell", "name of the set of samples", type=str),
    flag("--seed", "of the set of samples", type=int),
    flag("--shard", "which part of the set, from 0", type=int),
    flag("--model-folder"),
    flag("--entropy-model", "folder; read where patches are dynamic"),
    flag("--gates", "folder of gates; read instead if the cell has one", default=Path()),
    flag("--tokenizer", "folder"),
    THRESHOLDS,
    flag("--index", "index/train.json: how often each class is drawn with `labels: training`", required=False),
    flag("--output", "npz of images, labels and patches per image"),
    flag("--picture", "PNG of some of the images, a row per class"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage.

    Raises:
        InputError: an unknown cell or shard, networks of something else, or not even one image fits the memory.
    """
    run = STAGE.start(argv)
    args, experiment = run.args, run.experiment
    cell = sample_cell(experiment, args.cell)
    inputs = jobs.model(f"{cell.model}/{cell.milestone}", args.model_folder) + jobs.tokenizer(args.tokenizer)
    if index := args.index if cell.sampling.labels == "training" else None:
        inputs += jobs.index("train", index)
    run.check(inputs)
    wanted = request_of(experiment, cell.sampling, args, index)
    boundaries = boundaries_of(run, cell)
    with run.job(
        f"{args.cell}/seed{args.seed}/{args.shard}",
        inputs=inputs + boundaries.read,
        outputs=[args.output, args.picture],
        params=params(cell, boundaries.rule, args),
    ) as job:
        networks = load_networks(
            args.model_folder,
            boundaries.network,
            args.tokenizer,
            gate=cell.gate,
            precision=cell.sampling.precision,
            device=default_device(args.shard),
        )
        _check_grid(experiment, networks, args)
        side = experiment.evaluation.resolution or experiment.images.resolution
        settings = DrawSettings(**cell.sampling.draw, compile=cell.sampling.compile)
        sampler = ImageSampler(networks, boundaries.rule, settings, cell.sampling.batch_size, side)
        identity = conditions(cell, sampler, args)
        parts = Parts(args.output, digest(identity))
        draw_missing(sampler, wanted, parts, job)
        patches = write(args, wanted, parts, identity, side, compiled=settings.compile)
        job.image(args.picture, key="samples", step=0)
        lengths = networks.model.config.tokens / patches
        job.summary({"sample/mean_steps": patches.mean(), "sample/mean_patch_length": lengths.mean()})


def request_of(experiment: Experiment, sampling: Sampling, args: argparse.Namespace, index: Path | None) -> Request:
    """The images of this shard.

    Args:
        index: of the training images, where classes follow them.

    Raises:
        InputError: as of `request`.
    """
    return request(
        num_images=sampling.num_images,
        num_classes=experiment.images.num_classes,
        labels=sampling.labels,
        seed=args.seed,
        batch_size=sampling.batch_size,
        shard=args.shard,
        shards=sampling.shards,
        counts=ImageIndex.load(index).class_counts if index else None,
    )


@dataclass(frozen=True)
class Boundaries:
    """Where patches begin: the rule (None without patches), the folder of the network that it asks, the files read."""

    rule: PatchRule | None
    network: Path | None
    read: list[Wanted]


def boundaries_of(run: Run, cell: SampleCell) -> Boundaries:
    """The boundaries of a set of samples: the entropy model's, or those of the cell's gate, with its own threshold.

    Raises:
        InputError: a threshold is not calibrated, or `--model-folder` holds no model.
    """
    args, experiment = run.args, run.experiment
    if model_config(args.model_folder)["kind"] != "dpar":
        return Boundaries(None, None, [])
    if not cell.patchify.is_dynamic:
        return Boundaries(PatchRule.of(cell.patchify, None, experiment.grid[1]), None, [])
    network = args.gates / cell.gate if cell.gate else args.entropy_model
    read = jobs.network(gate_folder(cell.gate), network)
    if cell.gate:
        read += jobs.gate_thresholds(cell.gate, gate_thresholds(network))
    else:
        read += jobs.thresholds(experiment, args.thresholds)
    run.check(read)
    if cell.gate:
        rule = PatchRule.of(cell.patchify, gate_threshold(network, cell.patchify), experiment.grid[1])
    else:
        rule = PatchRule.calibrated(cell.patchify, merged_thresholds(args.thresholds), experiment.grid[1])
    return Boundaries(rule, network, read)


def params(cell: SampleCell, rule: PatchRule | None, args: argparse.Namespace) -> dict[str, Any]:
    """The settings of the job, as the dashboard shows them."""
    return {
        "cell": args.cell,
        "seed": args.seed,
        "shard": args.shard,
        "patch.e_th": rule and rule.threshold,
        **({"gate": cell.gate} if cell.gate else {}),
        **{f"sample.{name}": value for name, value in cell.sampling.model_dump(exclude={"seeds"}).items()},
        **({f"patch.{name}": value for name, value in cell.patchify.model_dump().items()} if rule else {}),
    }


def conditions(cell: SampleCell, sampler: ImageSampler, args: argparse.Namespace) -> dict[str, Any]:
    """All that decides the images, but for rounding."""
    return {
        "cell": args.cell,
        "seed": args.seed,
        "shard": args.shard,
        "sampling": cell.sampling.model_dump(mode="json", exclude={"seeds", "compile"}),
        "patchify": cell.patchify.model_dump(mode="json") if sampler.rule else None,
        "threshold": sampler.rule and sampler.rule.threshold,
        **({"gate": cell.gate} if cell.gate else {}),
        **({"entropy_precision": p} if (p := sampler.networks.entropy_precision) != "float32" else {}),
        "resolution": sampler.side,
        "networks": sampler.networks.digests,
        "step": sampler.networks.provenance.get("step"),
        "recipe": RECIPES["sample_images"],
    }


def draw_missing(sampler: ImageSampler, wanted: Request, parts: Parts, job: tracking.Job) -> None:
    """Draws the images that `parts` does not have yet, and says how far it is.

    Raises:
        InputError: one image does not fit the memory.
    """
    start, before = time.monotonic(), parts.resume()
    for batch in sampler.batches(wanted, done=before, keep=partial(keep, parts)):
        pace = (batch.stop - before) / (time.monotonic() - start)
        left = (len(wanted) - batch.stop) / pace
        print(f"drew {batch.stop} of {len(wanted)} images, {pace:.2f} per second, {left:.0f} s left", file=sys.stderr)
        job.metrics({"sample/images_per_s": pace}, step=batch.stop)
        job.commit(batch.stop)


def write(
    args: argparse.Namespace, wanted: Request, parts: Parts, identity: dict[str, Any], side: int, *, compiled: bool
) -> Int[np.ndarray, " N"]:
    """Writes the samples with their conditions and the picture, throws the parts away, and gives patches per image."""
    patches = np.concatenate([part.patches for part in kept(parts)])
    # rounding depends on the sizes of batches, and on the compiler
    rounding = {"batches": sorted({len(span) for span in parts.spans})} | ({"compiled": True} if compiled else {})
    write_samples(
        args.output,
        (part.images for part in kept(parts)),
        (len(wanted), side, side, 3),
        {"labels": wanted.labels.astype(np.int32), "patches": patches.astype(np.int32)},
        identity | rounding,
    )
    write_bytes(args.picture, contact_sheet(chosen(parts, wanted)))
    parts.remove()
    return patches


def _check_grid(experiment: Experiment, networks: Networks, args: argparse.Namespace) -> None:
    if networks.model.config.grid != experiment.grid:
        found, expected = (" x ".join(map(str, grid)) for grid in (networks.model.config.grid, experiment.grid))
        raise InputError(
            f"{args.model_folder} draws {found} tokens, the experiment's images have {expected}; "
            "give a model of this experiment"
        )


def chosen(parts: Parts, wanted: Request) -> list[UInt8[np.ndarray, "_ H W 3"]]:
    """The images of the picture, a row per class; only they are held in memory."""
    rows = class_rows(wanted.labels, COLUMNS, ROWS)
    needed = np.sort(np.concatenate(rows))
    shown: dict[int, Any] = {}
    for part in kept(parts):
        for number in needed[(needed >= part.start) & (needed < part.stop)]:
            shown[number] = part.images[number - part.start]
    return [np.stack([shown[number] for number in row]) for row in rows]


if __name__ == "__main__":
    sys.exit(run_command(main))
