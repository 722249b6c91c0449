"""Shows samples of every model beside real images, a row a class."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dpar import tracking
from dpar.config import load_experiment
from dpar.data.crops import center_crop
from dpar.data.images import ImageIndex
from dpar.errors import run_command
from dpar.report.figures import sample_columns, save

MOST_CLASSES, MOST_CELLS, PICTURES = 10, 6, 4


def parser() -> argparse.ArgumentParser:
    """The flags of this stage."""
    flags = argparse.ArgumentParser(prog="plot_samples", description=__doc__)
    flags.add_argument("--experiment", type=Path, required=True)
    flags.add_argument("--index", type=Path, required=True, help="index/val.json, for the real images")
    flags.add_argument("--samples", type=Path, nargs="+", required=True, help="samples/CELL/seedN/00000.npz ...")
    flags.add_argument("--output", type=Path, required=True)
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage."""
    args = parser().parse_args(argv)
    experiment = load_experiment(args.experiment)
    with tracking.job(
        rule="plot_samples",
        experiment=args.experiment,
        name="plot_samples",
        inputs=[args.index, *args.samples],
        outputs=[args.output],
        params={},
    ) as job:
        index, side = ImageIndex.load(args.index), experiment.images.resolution
        samples = {}
        for path in args.samples[:MOST_CELLS]:
            with np.load(path) as stored:
                samples[path.parents[1].name] = stored["arr_0"], stored["labels"]
        drawn = np.unique(np.concatenate([labels for _, labels in samples.values()]))
        real_labels = np.asarray(index.labels)
        classes = [int(c) for c in drawn if (real_labels == c).any()]
        classes = classes[:: max(1, len(classes) // MOST_CLASSES)][:MOST_CLASSES]
        columns = {
            "real": np.stack(
                [
                    _padded(
                        [
                            np.asarray(center_crop(index.read(int(i)), side))
                            for i in np.flatnonzero(real_labels == c)[:PICTURES]
                        ],
                        side,
                    )
                    for c in classes
                ]
            )
        }
        for name, (pictures, labels) in samples.items():
            columns[name] = np.stack(
                [_padded(list(pictures[labels == c][:PICTURES]), pictures.shape[1]) for c in classes]
            )
        save(sample_columns(columns, [f"class {c}" for c in classes]), args.output)
        job.image(args.output, key="samples", step=0)


def _padded(pictures: list[np.ndarray], side: int) -> np.ndarray:
    """The first PICTURES pictures, white where there are fewer."""
    blank = np.full((side, side, 3), 255, np.uint8)
    return np.stack((pictures + [blank] * PICTURES)[:PICTURES])


if __name__ == "__main__":
    sys.exit(run_command(main))
