"""Computes the features of the real images, or of one set of samples, once for all metrics.

Processes (`dpar.workflow.launch --gpus N`) share the images. Parts are kept as they are finished: the same command
goes on with those that are missing, and neither changes a bit of the features.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int

from dpar import tracking
from dpar.data.parts import Parts
from dpar.errors import InputError, run_command
from dpar.evaluation.features import Extractor, open_extractor, save_features
from dpar.evaluation.image_sets import Files, ImageSet, Indexed, open_set
from dpar.evaluation.passes import Pass, unseen
from dpar.evaluation.shared_pass import add_missing, gather_parts
from dpar.experiment.cells import sample_cells
from dpar.experiment.settings import Experiment
from dpar.files import digest
from dpar.tracking.makers import Wanted
from dpar.train.distributed import ranks
from dpar.workflow import jobs
from dpar.workflow.recipes import RECIPES
from dpar.workflow.stage import Stage, flag

REFERENCE = "features/reference"

STAGE = Stage(
    "extract_features",
    __doc__,
    flag("--extractor", "classifier's folder, or a file"),
    flag("--images", "an index (.json), or shards of samples (.npz)", nargs="+"),
    flag("--output", "npz of features"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage."""
    run = STAGE.start(argv)
    args, experiment = run.args, run.experiment
    name = "/".join(args.output.absolute().with_suffix("").parts[-2:])
    with (
        ranks() as here,
        run.job(
            name,
            inputs=jobs.extractor(args.extractor) + described_images(experiment, name, args.images),
            outputs=[args.output],
            params={
                "extractor": experiment.evaluation.extractor,
                "reference_images": experiment.evaluation.reference_images,
                "seed": experiment.seed,
            },
        ) as job,
    ):
        extractor = open_extractor(args.extractor, here.device).first(experiment.evaluation.dimensions)
        if experiment.evaluation.extractor == "inception" and extractor.name != "inception":
            raise InputError(f"{args.extractor} holds {extractor.name}, the experiment's extractor is inception")
        side = experiment.evaluation.resolution or experiment.images.resolution
        images = open_set(args.images)
        if isinstance(images, Files):
            raise InputError(f"{images.source}: expected an index (.json), or images in npz files")
        rows, left_out = choose(images, extractor, experiment, reference=name == REFERENCE)
        whole = Pass(images, extractor, side, rows=rows)
        parts = Parts(args.output, here.from_main(identity(whole, here.device) if here.main else ""))
        add_missing(parts, whole, here)
        if here.main:
            features = whole.features(gather_parts(parts, whole))
            features = replace(features, conditions=features.conditions | {"left_out": left_out})
            save_features(args.output, features)
            parts.remove()
            job.summary({"images": len(features)})
            print(f"{len(features)} images, features of {features.features.shape[1]} dimensions: {args.output}")
        here.wait_for_main()


def described_images(experiment: Experiment, name: str, paths: Sequence[Path]) -> list[Wanted]:
    """The images whose features are called `name`: of the reference, or all shards of a set of samples.

    Raises:
        InputError: another number of shards.
    """
    if name == REFERENCE:
        reference = experiment.evaluation.reference
        return jobs.index(reference, *paths) if reference in ("train", "val") else [Wanted(p) for p in paths]
    cell, _, seed = name.partition("/")
    shards = [f"sample_images[{name}/{i}]" for i in range(len(paths))]
    found = sample_cells(experiment).get(cell)
    if found is None:
        return [Wanted(path) for path in paths]
    if len(paths) != found.sampling.shards:
        raise InputError(f"{len(paths)} files of samples of {cell}, {seed}; give its {found.sampling.shards} shards")
    return [wanted for shard, path in zip(shards, paths, strict=True) for wanted in tracking.made_by(shard, path)]


def identity(whole: Pass, device: torch.device) -> str:
    """Of all that decides the outputs."""
    return digest(
        [
            whole.images.conditions(),
            whole.chosen.tolist(),
            whole.side,
            whole.extractor.sha256,
            *([whole.extractor.dimensions] if whole.extractor.dimensions else []),
            RECIPES["extract_features"],
            device.type,  # which rounds in its own way
        ]
    )


def choose(
    images: ImageSet, extractor: Extractor, experiment: Experiment, *, reference: bool
) -> tuple[Int[np.ndarray, "n"], int]:
    """Which images are described, in their order, and how many are left out as the classifier's own.

    Args:
        reference: whether they are what samples are compared with, as any index is; of samples all are described.

    Raises:
        InputError: fewer than `evaluation.reference_images` of the reference are left.
    """
    rows = unseen(images, extractor)
    left_out = len(images) - len(rows)
    wanted = experiment.evaluation.reference_images
    if wanted is not None and (reference or isinstance(images, Indexed)):
        if wanted > len(rows):
            raise InputError(
                f"`evaluation.reference_images` asks for {wanted} images, {len(rows)} can be used "
                f"({left_out} of {len(images)} trained the classifier); lower it"
            )
        rows = np.sort(np.random.default_rng(experiment.seed).permutation(rows)[:wanted])
    return rows, left_out


if __name__ == "__main__":
    sys.exit(run_command(main))
