"""Computes the features of the real images, or of one set of samples, once for all metrics."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from dpar import __version__, tracking
from dpar.config import Experiment, load_experiment
from dpar.data.images import ImageIndex
from dpar.data.workers import reported
from dpar.device import default_device
from dpar.errors import InputError, run_command
from dpar.evaluation.classifier import training_half
from dpar.evaluation.features import (
    BATCH,
    Extractor,
    Features,
    ImageArray,
    extract,
    index_batches,
    open_extractor,
    save_features,
)
from dpar.evaluation.frechet import Gaussian


def parser() -> argparse.ArgumentParser:
    """The flags of this stage."""
    flags = argparse.ArgumentParser(prog="extract_features", description=__doc__)
    flags.add_argument("--experiment", type=Path, required=True)
    flags.add_argument("--extractor", type=Path, required=True, help="folder of the classifier, or file of Inception")
    flags.add_argument(
        "--images", type=Path, nargs="+", required=True, help="an index (.json), or shards of samples (.npz)"
    )
    flags.add_argument("--output", type=Path, required=True, help="npz of features")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage."""
    args = parser().parse_args(argv)
    experiment = load_experiment(args.experiment)
    with tracking.job(
        rule="extract_features",
        experiment=args.experiment,
        name=f"extract_features[{'/'.join(args.output.with_suffix('').parts[-2:])}]",
        inputs=[args.extractor, *args.images],
        outputs=[args.output],
        params={
            "extractor": experiment.evaluation.extractor,
            "reference_images": experiment.evaluation.reference_images,
            "seed": experiment.seed,
        },
    ) as job:
        extractor = open_extractor(args.extractor, default_device())
        side = experiment.evaluation.resolution or experiment.images.resolution
        if extractor.resolution not in (None, side):
            raise InputError(
                f"{args.extractor} was trained on images of {extractor.resolution} pixels, the experiment's are "
                f"evaluated at {side}; run train_classifier again"
            )
        from_index = [path.suffix == ".json" for path in args.images]
        if all(from_index) and len(args.images) == 1:
            features = describe_index(args.images[0], extractor, experiment, side)
        elif not any(from_index):
            features = describe_arrays(args.images, extractor, side)
        else:
            raise InputError(f"--images {' '.join(map(str, args.images))}: give one index (.json), or only npz files")
        save_features(args.output, features)
        job.summary({"images": len(features)})
        print(f"{len(features)} images, features of {features.features.shape[1]} dimensions: {args.output}")


def describe_index(path: Path, extractor: Extractor, experiment: Experiment, side: int) -> Features:
    """The features of an index's images, without those that the classifier has learnt from."""
    index = ImageIndex.load(path)
    rows, seen = choose(index, extractor, experiment)
    batches = reported(index_batches(index, rows, side), len(rows), "described", size=BATCH)
    conditions = _conditions(extractor, side) | {
        "source": str(path),
        "source_digest": index.digest,
        "left_out": seen,
        "crop": "centre square, halved by averages, then bicubic (ADM)",
    }
    return _features(extract(extractor, batches), index.labels[rows], {}, conditions)


def choose(index: ImageIndex, extractor: Extractor, experiment: Experiment) -> tuple[Int[np.ndarray, "n"], int]:
    """Which images of an index are described, in its order, and how many are left out as the classifier's own.

    Raises:
        InputError: fewer than `evaluation.reference_images` are left.
    """
    labels = torch.from_numpy(index.labels)
    seen = torch.zeros(len(index), dtype=torch.bool)
    if extractor.provenance.get("train_digest") == index.digest:
        seen = training_half(labels, extractor.provenance["seed"])
    rows = (~seen).nonzero()[:, 0].numpy()
    wanted = experiment.evaluation.reference_images
    if wanted is not None:
        if wanted > len(rows):
            raise InputError(
                f"`evaluation.reference_images` asks for {wanted} images, {len(rows)} can be used "
                f"({int(seen.sum())} of {len(index)} trained the classifier); lower it"
            )
        rows = np.sort(np.random.default_rng(experiment.seed).permutation(rows)[:wanted])
    return rows, int(seen.sum())


def describe_arrays(paths: Sequence[Path], extractor: Extractor, side: int) -> Features:
    """The features of the images in npz files, one after the other, with the statistics that such a file may hold."""
    files = [ImageArray.open(path) for path in paths]
    for file in files:
        if file.shape[1] != side:
            raise InputError(
                f"{file.path} holds images of {file.shape[1]} pixels, the experiment is evaluated at {side}; draw the "
                "samples at that size (they are resized before they become bytes), or set `evaluation.resolution`"
            )
    total = sum(map(len, files))
    batches = reported((batch for file in files for batch in file.batches()), total, "described", size=BATCH)
    labelled = [file.arrays["labels"] for file in files if "labels" in file.arrays]
    labels = np.concatenate(labelled).astype(np.int32) if len(labelled) == len(files) else None
    if labels is not None and labels.shape != (total,):
        raise InputError(f"{paths[0]} and its fellow shards hold {total} images but labels of shape {labels.shape}")
    statistics = {}
    if len(files) == 1 and extractor.name == "inception":  # such statistics are Inception's by definition
        for name, mean, covariance in (("features", "mu", "sigma"), ("spatial", "mu_s", "sigma_s")):
            if mean in files[0].arrays:
                moments = (torch.from_numpy(files[0].arrays[key].astype(np.float64)) for key in (mean, covariance))
                statistics[name] = Gaussian(*moments, count=0)
    steps = [file.arrays["patches"] for file in files if "patches" in file.arrays]
    conditions = _conditions(extractor, side) | {
        "source": str(paths[0]),
        "shards": len(paths),
        "crop": "none",
        "drawn": _drawn(files),
        "steps": float(np.concatenate(steps).mean()) if len(steps) == len(files) else None,
    }
    return _features(extract(extractor, batches), labels, statistics, conditions)


def _drawn(files: Sequence[ImageArray]) -> dict[str, Any] | None:
    """How all shards of a set of samples were drawn, as they say themselves; null where they say nothing."""
    stated = [json.loads(str(file.arrays["conditions"])) for file in files if "conditions" in file.arrays]
    for conditions in stated:
        conditions.pop("shard", None)
    if stated and (len(stated) < len(files) or any(conditions != stated[0] for conditions in stated)):
        raise InputError(
            f"{files[0].path} and its fellow shards were not drawn alike (other model, settings or seed); "
            "give the shards of one set of samples"
        )
    return stated[0] if stated else None


def _conditions(extractor: Extractor, side: int) -> dict[str, Any]:
    return {
        "extractor": extractor.name,
        "extractor_sha256": extractor.sha256,
        "extractor_accuracy": extractor.provenance.get("accuracy"),
        "resolution": side,
        "dtype": "float32",
        "versions": {"dpar": __version__, "torch": torch.__version__, "numpy": np.__version__},
    }


def _features(
    outputs: list[np.ndarray],
    labels: Int[np.ndarray, "N"] | None,
    statistics: dict[str, Gaussian],
    conditions: dict[str, Any],
) -> Features:
    features, logits, *spatial = outputs
    return Features(
        features, logits, labels, spatial[0] if spatial else None, statistics, conditions | {"count": len(features)}
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
