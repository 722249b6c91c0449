"""Statistics and images of a data set in the format of ADM's reference files: `dpar make-reference DATA OUT.npz`.

OUT.npz holds `mu, sigma` (pool_3) and `mu_s, sigma_s` (spatial) of all images of DATA, and `arr_0`, some of the images,
for precision and recall: OpenAI's evaluator and `dpar evaluate` read it. Features pass by and are not kept. With
--no-statistics it holds images alone: samples for OpenAI's evaluator, which would take statistics for its own.
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
from dpar.evaluation.features import BATCH, Extractor, open_extractor, outputs_of
from dpar.evaluation.frechet import Moments
from dpar.evaluation.image_sets import Files, ImageSet, open_set
from dpar.evaluation.passes import batches
from dpar.files import check_spared
from dpar.sampling.archive import write_samples
from dpar.workflow.options import COUNT, SEED, SIDE, Parser, RawHelp

IMAGES = 10_000  # of a reference, for precision and recall


def parser() -> argparse.ArgumentParser:
    """The flags of this command."""
    flags = Parser(prog="dpar make-reference", description=__doc__, formatter_class=RawHelp)
    flags.add_argument(
        "data", type=Path, metavar="DATA", help="npz, folder, Parquet, tars or index, as `dpar evaluate`"
    )
    flags.add_argument("output", type=Path, metavar="OUT.npz")
    how = flags.add_mutually_exclusive_group(required=True)
    how.add_argument("--extractor", type=Path, metavar="FILE", help="Inception's weights")
    how.add_argument("--no-statistics", action="store_true", help="images alone, for which no network is needed")
    flags.add_argument(
        "--resolution", type=SIDE, metavar="N", help="cut image files to squares of N pixels (ADM's crop)"
    )
    flags.add_argument(
        "--images",
        type=COUNT,
        help="images in arr_0, drawn at random, in their order (default: 10000, and all without statistics)",
    )
    flags.add_argument("--seed", type=SEED, default=0, help="of the drawing (default: 0)")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the reference whole or not at all.

    Raises:
        InputError: the data or the network cannot be used, or there are too few images for a covariance.
    """
    args = parser().parse_args(argv)
    if args.output.suffix != ".npz":
        raise InputError(f"{args.output}: the reference is an npz file; name it OUT.npz")
    check_spared(args.output, args.data)
    extractor = None if args.no_statistics else open_inception(args.extractor)
    images = open_set([args.data])
    if not len(images):
        raise InputError(f"{args.data} holds no images; check the path")
    arrays = {} if extractor is None else statistics(images, extractor, args.resolution)
    count = min(args.images or (len(images) if extractor is None else IMAGES), len(images))
    chosen = np.sort(np.random.default_rng(args.seed).permutation(len(images))[:count])
    conditions = {"made_from": images.source, "images": count, "seed": args.seed, "dpar": __version__}
    if images.labels is not None:
        arrays["labels"] = images.labels[chosen]
        if images.classes is not None:
            conditions["classes"] = list(images.classes)  # without which nobody knows what the labels count
        conditions |= images.class_folders() if isinstance(images, Files) else {}
    if extractor is not None:
        conditions |= {"statistics_of": len(images), "extractor_sha256": extractor.sha256}
    if extractor is not None or not isinstance(images, Files):  # image files are known when they have been read
        conditions |= images.conditions()

    def blocks() -> Iterator[UInt8[np.ndarray, "_ H W 3"]]:
        for batch in batches(images, chosen, side=args.resolution):
            yield batch.permute(0, 2, 3, 1).numpy()

    stored = blocks()
    first = next(stored)
    side = first.shape[1]
    write_samples(args.output, chain([first], stored), (count, side, side, 3), arrays, conditions)
    what = "" if extractor is None else f"statistics of {len(images):,} images, "
    print(f"{args.output}: {what}{count:,} images of {side} pixels as arr_0")


def open_inception(path: Path) -> Extractor:
    """The network of the statistics.

    Raises:
        InputError: the file is damaged, or another network.
    """
    extractor = open_extractor(path, default_device())
    if extractor.name != "inception":
        raise InputError(
            f"{path} is {extractor.name}; the statistics of such a file are Inception's by definition: give "
            "its weights (for other networks, `dpar evaluate --keep` stores features of both sides)"
        )
    return extractor


def statistics(images: ImageSet, extractor: Extractor, side: int | None) -> dict[str, np.ndarray]:
    """Mean and covariance of Inception's pooled and spatial features of all images, under ADM's names.

    Raises:
        InputError: an image cannot be read, or there are too few for a covariance.
    """
    pool, spatial = Moments(), Moments()
    rows = np.arange(len(images))
    passed = reported(batches(images, rows, side=side), len(rows), "described", size=BATCH)
    for activations in outputs_of(extractor, passed):
        pool.add(activations[0])
        spatial.add(activations[2])
    found = {}
    for moments, mean, covariance in ((pool, "mu", "sigma"), (spatial, "mu_s", "sigma_s")):
        gaussian = moments.gaussian()
        found |= {mean: gaussian.mean.numpy(), covariance: gaussian.covariance.numpy()}
    return found
