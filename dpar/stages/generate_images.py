"""Draws the package's own images of a split into a Parquet file."""

import argparse
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dpar import tracking
from dpar.data.generated import CLASSES, draw
from dpar.data.workers import reported
from dpar.errors import InputError, run_command
from dpar.experiment.loading import load_experiment
from dpar.files import atomic_write, digest

_ROW_GROUP = 1024  # images


def parser() -> argparse.ArgumentParser:
    """The flags of this stage."""
    flags = argparse.ArgumentParser(prog="generate_images", description=__doc__)
    flags.add_argument("--experiment", type=Path, required=True)
    flags.add_argument("--split", choices=("train", "val"), required=True)
    flags.add_argument("--output", type=Path, required=True, help="Parquet file with the columns key, image, label")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage.

    Raises:
        InputError: the experiment names images of its own, or more classes than the package can draw.
    """
    args = parser().parse_args(argv)
    experiment = load_experiment(args.experiment)
    images = experiment.images
    if images.generated is None:
        raise InputError(f"{args.experiment}: images.source is `{images.source}`, nothing is to be generated")
    count = getattr(images.generated, args.split)
    if images.num_classes > len(CLASSES):
        raise InputError(
            f"{args.experiment}: images.num_classes is {images.num_classes}, at most {len(CLASSES)} are drawn"
        )
    params = {"split": args.split, "images": count, "classes": images.num_classes, "resolution": images.resolution}
    with tracking.job(
        rule="generate_images",
        experiment=args.experiment,
        name=f"generate_images[{args.split}]",
        outputs=[args.output],
        params=params,
    ):
        seed = int(digest([experiment.seed, args.split]), 16)
        schema = pa.schema(
            {"key": pa.string(), "image": pa.binary(), "label": pa.int32()},
            metadata={"classes": json.dumps(CLASSES[: images.num_classes])},
        )
        groups = _groups(args.split, count, images.num_classes, seed, images.resolution)
        with (
            atomic_write(args.output) as temporary,
            open(temporary, "wb") as file,
            pq.ParquetWriter(file, schema, compression="none", use_dictionary=False) as writer,
        ):
            for group in reported(groups, count, "drew", size=_ROW_GROUP):
                writer.write_table(pa.Table.from_pylist(group, schema))


def _groups(split: str, count: int, num_classes: int, seed: int, resolution: int) -> Iterator[list[dict]]:
    for first in range(0, count, _ROW_GROUP):
        yield [
            {
                "key": f"{split}-{i:07d}",
                "image": _png(i % num_classes, i, seed, resolution),
                "label": i % num_classes,
            }
            for i in range(first, min(first + _ROW_GROUP, count))
        ]


def _png(label: int, index: int, seed: int, resolution: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(draw(label, index, seed, resolution)).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(run_command(main))
