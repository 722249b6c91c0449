"""Draws one shard of images with classifier-free guidance (Algorithm 2).

Image i of a set of samples has a seed and a label of its own, so shards, batches and processes do not change it.
Batches are kept as they are finished: the same command goes on after the last one.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from dpar import tracking
from dpar.config import Patchify, Sampling, load_experiment
from dpar.device import default_device
from dpar.errors import InputError, run_command
from dpar.files import digest, read_json, write_bytes
from dpar.grid import merged_thresholds, sample_cells, threshold_of
from dpar.recipes import RECIPES
from dpar.sampling.archive import Part, Parts, write_samples
from dpar.sampling.networks import Networks, load_networks
from dpar.sampling.picture import class_rows, contact_sheet
from dpar.sampling.request import Request, request
from dpar.weights import model_config

COLUMNS, ROWS = 8, 10  # of the picture


def parser() -> argparse.ArgumentParser:
    """The flags of this stage."""
    flags = argparse.ArgumentParser(prog="sample_images", description=__doc__)
    flags.add_argument("--experiment", type=Path, required=True)
    flags.add_argument("--cell", required=True, help="name of the set of samples")
    flags.add_argument("--seed", type=int, required=True, help="of the set of samples")
    flags.add_argument("--shard", type=int, required=True, help="which part of the set, from 0")
    flags.add_argument("--model-folder", type=Path, required=True)
    flags.add_argument("--entropy-model", type=Path, required=True, help="folder; read where patches are dynamic")
    flags.add_argument("--tokenizer", type=Path, required=True, help="folder")
    flags.add_argument("--thresholds", type=Path, nargs="*", default=[], help="what calibrate_threshold wrote")
    flags.add_argument("--output", type=Path, required=True, help="npz of images, labels and patches an image")
    flags.add_argument("--picture", type=Path, required=True, help="PNG of some of the images, a row a class")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage.

    Raises:
        InputError: an unknown cell or shard, networks of something else, or not even one image fits the memory.
    """
    args = parser().parse_args(argv)
    experiment = load_experiment(args.experiment)
    cells = sample_cells(experiment)
    if args.cell not in cells:
        raise InputError(f"--cell {args.cell}: there is no such set of samples; there are {', '.join(cells) or 'none'}")
    cell, sampling = cells[args.cell], cells[args.cell].sampling
    wanted = request(
        num_images=sampling.num_images,
        num_classes=experiment.images.num_classes,
        labels=sampling.labels,
        seed=args.seed,
        shard=args.shard,
        shards=sampling.shards,
    )
    patched = model_config(args.model_folder)["kind"] == "dpar"
    gated = patched and cell.patchify.strategy == "dynamic"
    threshold = threshold_of(cell.patchify, merged_thresholds(map(read_json, args.thresholds))) if gated else None
    with tracking.job(
        rule="sample_images",
        experiment=args.experiment,
        name=f"sample_images[{args.cell}/seed{args.seed}/{args.shard}]",
        inputs=[args.model_folder, args.tokenizer]
        + ([args.entropy_model] if gated else [])
        + (args.thresholds if gated else []),
        outputs=[args.output, args.picture],
        params={
            "cell": args.cell,
            "seed": args.seed,
            "shard": args.shard,
            "patch.e_th": threshold,
            **{f"sample.{name}": value for name, value in sampling.model_dump(exclude={"seeds"}).items()},
            **({f"patch.{name}": value for name, value in cell.patchify.model_dump().items()} if patched else {}),
        },
    ) as job:
        networks = load_networks(
            args.model_folder,
            args.entropy_model if gated else None,
            args.tokenizer,
            precision=sampling.precision,
            device=default_device(),
        )
        if networks.model.config.grid != experiment.grid:
            found, expected = (" x ".join(map(str, grid)) for grid in (networks.model.config.grid, experiment.grid))
            raise InputError(
                f"{args.model_folder} draws {found} tokens, the experiment's images have {expected}; "
                "give a model of this experiment"
            )
        side = experiment.evaluation.resolution or experiment.images.resolution
        conditions = {
            "cell": args.cell,
            "seed": args.seed,
            "shard": args.shard,
            "sampling": sampling.model_dump(mode="json", exclude={"seeds", "batch_size"}),
            "patchify": cell.patchify.model_dump(mode="json") if patched else None,
            "threshold": threshold,
            "resolution": side,
            "networks": networks.digests,
            "step": networks.provenance.get("step"),
            "recipe": RECIPES["sample_images"],
        }
        parts = Parts(args.output, digest(conditions))
        start, before = time.monotonic(), parts.done
        for part in drawn(networks, wanted, parts.done, sampling, cell.patchify, threshold, side):
            parts.add(part)
            pace = (part.stop - before) / (time.monotonic() - start)
            left = (len(wanted) - part.stop) / pace
            print(f"drew {part.stop} of {len(wanted)} images, {pace:.2f} a second, {left:.0f} s left", file=sys.stderr)
            job.metrics({"sample/images_per_s": pace}, step=part.stop)
            job.commit(part.stop)
        patches = np.concatenate([part.patches for part in parts])
        write_samples(
            args.output,
            (part.images for part in parts),
            (len(wanted), side, side, 3),
            {"labels": wanted.labels.astype(np.int32), "patches": patches.astype(np.int32)},
            conditions,
        )
        write_bytes(args.picture, contact_sheet(chosen(parts, wanted)))
        parts.remove()
        job.image(args.picture, key="samples", step=0)
        lengths = networks.model.config.tokens / patches
        job.summary({"sample/mean_steps": patches.mean(), "sample/mean_patch_length": lengths.mean()})


def drawn(
    networks: Networks,
    wanted: Request,
    done: int,
    sampling: Sampling,
    patchify: Patchify,
    threshold: float | None,
    side: int,
) -> Iterator[Part]:
    """The images from number `done` on, a batch at a time; batches that do not fit the memory are halved.

    Raises:
        InputError: one image does not fit.
    """
    size = sampling.batch_size
    while done < len(wanted):
        batch = wanted[done : done + size]
        try:
            images, patches = networks.draw(
                batch.labels,
                batch.seeds,
                side,
                patchify=patchify,
                threshold=threshold,
                cfg_scale=sampling.cfg_scale,
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
            )
        except torch.OutOfMemoryError:
            if size == 1:
                raise InputError(
                    "not even one image fits the memory of the device; use a larger one, or sampling.precision bfloat16"
                ) from None
            size = -(-size // 2)
            print(f"the device's memory is too small for the batch; going on with {size} images", file=sys.stderr)
            continue
        yield Part(done, images, patches)
        done += len(batch)


def chosen(parts: Parts, wanted: Request) -> list[UInt8[np.ndarray, "_ H W 3"]]:
    """The images of the picture, a row a class; only they are held in memory."""
    rows = class_rows(wanted.labels, COLUMNS, ROWS)
    needed = np.sort(np.concatenate(rows))
    shown: dict[int, Any] = {}
    for part in parts:
        for number in needed[(needed >= part.start) & (needed < part.stop)]:
            shown[number] = part.images[number - part.start]
    return [np.stack([shown[number] for number in row]) for row in rows]


if __name__ == "__main__":
    sys.exit(run_command(main))
