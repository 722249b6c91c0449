"""Draws one shard of images with classifier-free guidance (Algorithm 2).

Image i of a set of samples has a seed and a label of its own, so shards, batches and processes do not change it, but
for what the size of a batch does to rounding: the file says in which batches it was drawn. Batches are kept as they are
finished: the same command goes on after the last one.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dpar import tracking
from dpar.config import load_experiment
from dpar.device import default_device, full_float32
from dpar.errors import InputError, run_command
from dpar.files import digest, read_json, write_bytes
from dpar.grid import merged_thresholds, sample_cells, threshold_of
from dpar.recipes import RECIPES
from dpar.sampling.archive import Part, Parts, write_samples
from dpar.sampling.memory import in_pieces
from dpar.sampling.networks import Networks, gate_threshold, gate_thresholds, load_networks
from dpar.sampling.picture import class_rows, contact_sheet
from dpar.sampling.request import Request, request
from dpar.sampling.sampler import SampleResult
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
    flags.add_argument("--gates", type=Path, default=Path(), help="folder of gates; read instead if the cell has one")
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
        batch_size=sampling.batch_size,
        shard=args.shard,
        shards=sampling.shards,
    )
    patched = model_config(args.model_folder)["kind"] == "dpar"
    gated = patched and cell.patchify.is_dynamic
    placing, thresholds, threshold = args.entropy_model, args.thresholds, None
    if gated and cell.gate:
        placing = args.gates / cell.gate
        thresholds, threshold = [gate_thresholds(placing)], gate_threshold(placing, cell.patchify)
    elif gated:
        threshold = threshold_of(cell.patchify, merged_thresholds(map(read_json, thresholds)))
    with tracking.job(
        rule="sample_images",
        experiment=args.experiment,
        name=f"sample_images[{args.cell}/seed{args.seed}/{args.shard}]",
        inputs=[args.model_folder, args.tokenizer] + ([placing, *thresholds] if gated else []),
        outputs=[args.output, args.picture],
        params={
            "cell": args.cell,
            "seed": args.seed,
            "shard": args.shard,
            "patch.e_th": threshold,
            **({"gate": cell.gate} if cell.gate else {}),
            **{f"sample.{name}": value for name, value in sampling.model_dump(exclude={"seeds"}).items()},
            **({f"patch.{name}": value for name, value in cell.patchify.model_dump().items()} if patched else {}),
        },
    ) as job:
        networks = load_networks(
            args.model_folder,
            placing if gated else None,
            args.tokenizer,
            gate=cell.gate,
            precision=sampling.precision,
            device=default_device(args.shard),
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
            "sampling": sampling.model_dump(mode="json", exclude={"seeds", "compile"}),
            "patchify": cell.patchify.model_dump(mode="json") if patched else None,
            "threshold": threshold,
            **({"gate": cell.gate} if cell.gate else {}),
            "resolution": side,
            "networks": networks.digests,
            "step": networks.provenance.get("step"),
            "recipe": RECIPES["sample_images"],
        }
        parts = Parts(args.output, digest(conditions))
        how = {"patchify": cell.patchify, "threshold": threshold, "compile": sampling.compile, **sampling.draw}
        start, before = time.monotonic(), parts.done
        for stop in drawn(networks, wanted, parts, sampling.batch_size, side, how):
            pace = (stop - before) / (time.monotonic() - start)
            left = (len(wanted) - stop) / pace
            print(f"drew {stop} of {len(wanted)} images, {pace:.2f} a second, {left:.0f} s left", file=sys.stderr)
            job.metrics({"sample/images_per_s": pace}, step=stop)
            job.commit(stop)
        patches = np.concatenate([part.patches for part in parts])
        # rounding depends on the sizes of batches, and on the compiler
        conditions["batches"] = sorted({part.stop - part.start for part in parts})
        if sampling.compile:
            conditions["compiled"] = True
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
    networks: Networks, wanted: Request, parts: Parts, size: int, side: int, how: Mapping[str, Any]
) -> Iterator[int]:
    """Draws what `parts` does not have yet, `size` images at a time, and says how many are finished.

    While a batch is drawn, the batch before it becomes pixels and is kept. That hides the decoder and the disk where a
    GPU waits for Python between kernels; two CPU cores are busy anyway.

    Raises:
        InputError: one image does not fit the memory.
    """

    def draw(first: int, last: int) -> tuple[int, SampleResult]:
        batch = wanted[first:last]
        return first, networks.draw(batch.labels, batch.seeds, **how)

    def finish(first: int, result: SampleResult) -> int:
        part = Part(first, networks.pixels(result.tokens, side), result.starts.sum(1).cpu().numpy())
        parts.add(part)
        return part.stop

    # precision is a setting of the process: set around both threads, neither takes it from the other
    with full_float32(), ThreadPoolExecutor(1) as finisher:
        pending: list[Future[int]] = []
        for first, result in in_pieces(draw, parts.done, len(wanted), size):
            pending.append(finisher.submit(finish, first, result))
            if len(pending) > 1:
                yield pending.pop(0).result()
        for last in pending:
            yield last.result()


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
