"""Statistics and images of a data set in the format of ADM's reference files: `dpar make-reference DATA OUT.npz`.

OUT.npz holds `mu, sigma` (pool_3) and `mu_s, sigma_s` (spatial) of all images of DATA, and `arr_0`, some of the images,
for precision and recall: OpenAI's evaluator and `dpar evaluate` read it. Features pass by and are not kept.
"""

import argparse
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from dpar import __version__
from dpar.data.workers import reported
from dpar.device import default_device
from dpar.errors import InputError
from dpar.evaluation.features import BATCH, open_extractor, outputs_of
from dpar.evaluation.frechet import Moments
from dpar.evaluation.image_sets import batches, open_set
from dpar.sampling.archive import write_samples


def parser() -> argparse.ArgumentParser:
    """The flags of this command."""
    flags = argparse.ArgumentParser(
        prog="dpar make-reference", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument(
        "data", type=Path, metavar="DATA", help="npz, folder, Parquet, tars or index, as `dpar evaluate`"
    )
    flags.add_argument("output", type=Path, metavar="OUT.npz")
    flags.add_argument("--extractor", type=Path, required=True, metavar="FILE", help="Inception's weights")
    flags.add_argument(
        "--resolution", type=int, metavar="N", help="cut image files to squares of N pixels (ADM's crop)"
    )
    flags.add_argument("--images", type=int, default=10_000, help="images in arr_0, drawn at random (default: 10000)")
    flags.add_argument("--seed", type=int, default=0, help="of the drawing (default: 0)")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the reference whole or not at all.

    Raises:
        InputError: the data or the network cannot be used, or there are too few images for a covariance.
    """
    args = parser().parse_args(argv)
    for name in ("images", "resolution"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise InputError(f"--{name} {getattr(args, name)}: expected at least 1")
    if args.output.suffix != ".npz":
        raise InputError(f"{args.output}: the reference is an npz file; name it OUT.npz")
    extractor = open_extractor(args.extractor, default_device())
    if extractor.name != "inception":
        raise InputError(
            f"{args.extractor} is {extractor.name}; the statistics of such a file are Inception's by definition: give "
            "its weights (for other networks, `dpar evaluate --keep` stores features of both sides)"
        )
    images = open_set([args.data])
    pool, spatial = Moments(), Moments()
    rows = np.arange(len(images))
    passed = reported(batches(images, rows, side=args.resolution), len(rows), "described", size=BATCH)
    for activations in outputs_of(extractor, passed):
        pool.add(activations[0])
        spatial.add(activations[2])
    statistics = {}
    for moments, mean, covariance in ((pool, "mu", "sigma"), (spatial, "mu_s", "sigma_s")):
        gaussian = moments.gaussian()
        statistics |= {mean: gaussian.mean.numpy(), covariance: gaussian.covariance.numpy()}
    count = min(args.images, len(images))
    chosen = np.sort(np.random.default_rng(args.seed).permutation(rows)[:count])
    if images.labels is not None:
        statistics["labels"] = images.labels[chosen]
    conditions = {
        "made_from": images.source,
        **images.conditions(),
        "statistics_of": len(images),
        "images": count,
        "seed": args.seed,
        "extractor_sha256": extractor.sha256,
        "dpar": __version__,
    }

    def blocks() -> Iterator[UInt8[np.ndarray, "_ H W 3"]]:
        for batch in batches(images, chosen, side=args.resolution):
            yield batch.permute(0, 2, 3, 1).numpy()

    stored = blocks()
    first = next(stored)
    side = first.shape[1]
    write_samples(args.output, chain([first], stored), (count, side, side, 3), statistics, conditions)
    print(f"{args.output}: statistics of {len(images):,} images of {side} pixels, {count:,} of them as arr_0")
