"""Draws the package's own images of a split into a Parquet file."""

import io
import json
import sys
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dpar.data.generated import CLASSES, draw
from dpar.data.workers import reported
from dpar.errors import InputError, run_command
from dpar.files import atomic_write, digest
from dpar.statement import header_for
from dpar.workflow.stage import SPLIT, Stage, flag

_ROW_GROUP = 1024  # images

STAGE = Stage("generate_images", __doc__, SPLIT, flag("--output", "Parquet file with the columns key, image, label"))


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage.

    Raises:
        InputError: the experiment names images of its own, or more classes than the package can draw.
    """
    run = STAGE.start(argv)
    args, experiment = run.args, run.experiment
    images = experiment.images
    if images.generated is None:
        raise InputError(f"{args.experiment}: images.source is `{images.source}`, nothing is to be generated")
    count = getattr(images.generated, args.split)
    if images.num_classes > len(CLASSES):
        raise InputError(
            f"{args.experiment}: images.num_classes is {images.num_classes}, at most {len(CLASSES)} are drawn"
        )
    params = {"split": args.split, "images": count, "classes": images.num_classes, "resolution": images.resolution}
    with run.job(args.split, outputs=[args.output], params=params):
        seed = int(digest([experiment.seed, args.split]), 16)
        schema = pa.schema(
            {"key": pa.string(), "image": pa.binary(), "label": pa.int32()},
            metadata={"classes": json.dumps(CLASSES[: images.num_classes])} | header_for(args.output),
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
            {"key": f"{split}-{i:07d}", "image": _png(i % num_classes, i, seed, resolution), "label": i % num_classes}
            for i in range(first, min(first + _ROW_GROUP, count))
        ]


def _png(label: int, index: int, seed: int, resolution: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(draw(label, index, seed, resolution)).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(run_command(main))
