"""Lists the images of a split, reads each once, and counts classes and what could not be read."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dpar import tracking
from dpar.config import load_experiment
from dpar.data.images import ImageIndex, open_images
from dpar.errors import InputError, run_command


def parser() -> argparse.ArgumentParser:
    """The flags of this stage."""
    flags = argparse.ArgumentParser(prog="index_images", description=__doc__)
    flags.add_argument("--experiment", type=Path, required=True)
    flags.add_argument("--split", choices=("train", "val"), required=True)
    flags.add_argument("--images", type=Path, help="generated images; by default the experiment's path for the split")
    flags.add_argument("--output", type=Path, required=True, help="the index, JSON")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage.

    A class without images is an error for the training split; held-out images may lack some classes.

    Raises:
        InputError: no images, unreadable ones beyond what the experiment allows, or labels that do not fit it.
    """
    args = parser().parse_args(argv)
    images = load_experiment(args.experiment).images
    source = "parquet" if images.source == "generated" else images.source
    path = str(args.images) if args.images else getattr(images, args.split)
    if path is None:
        raise InputError(f"{args.experiment}: images.source is `generated`; name the generated file with --images")
    with tracking.job(
        rule="index_images",
        experiment=args.experiment,
        name=f"index_images[{args.split}]",
        inputs=[args.images] if args.images else [],
        outputs=[args.output],
        params={"split": args.split, "source": source, "path": path, "max_unreadable": images.max_unreadable},
    ) as job:
        found = open_images(source, path)
        if args.split == "val" and images.max_val is not None and images.max_val < len(found):
            found = found.keep(np.linspace(0, len(found) - 1, images.max_val).round().astype(int))
        index = ImageIndex.build(
            found,
            resolution=images.resolution,
            num_classes=images.num_classes,
            max_unreadable=images.max_unreadable,
            every_class=args.split == "train",
        )
        index.save(args.output)
        counts = index.class_counts
        print(
            f"{path}: {len(index)} images, {(counts > 0).sum()} of {index.num_classes} classes with {counts.min()} to "
            f"{counts.max()} images each, {len(index.skipped)} left out as unreadable"
        )
        job.summary(
            {
                "images": len(index),
                "images/skipped": len(index.skipped),
                "classes": int((counts > 0).sum()),
                "classes/fewest": int(counts.min()),
                "classes/most": int(counts.max()),
            }
        )


if __name__ == "__main__":
    sys.exit(run_command(main))
