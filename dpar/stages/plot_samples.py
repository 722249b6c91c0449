"""Shows samples, one row per class: every model's next to real images, or the cells and classes of a figure."""

import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from dpar.data.classes import Classes
from dpar.data.crops import center_crop
from dpar.data.images import ImageIndex
from dpar.errors import InputError, run_command
from dpar.files import fields_of
from dpar.report.figures import THUMBNAIL, sample_columns, save
from dpar.workflow import jobs
from dpar.workflow.stage import Stage, flag

MOST_CLASSES, SHOWN = 10, 4
DOTS = 150  # an inch: a figure of its own shows pixels as they are

STAGE = Stage(
    "plot_samples",
    __doc__,
    flag("--figure", "`samples`, or a name under `figures` of the experiment", type=str),
    flag("--index", "index/val.json: the real images of `samples`", required=False),
    flag("--classes", "index/train.json: the names of the classes", required=False),
    flag("--samples", "samples/CELL/seedN/00000.npz ...", nargs="+"),
    flag("--output"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage.

    Raises:
        InputError: the samples have none of the wanted classes.
    """
    run = STAGE.start(argv)
    args, experiment = run.args, run.experiment
    figure = experiment.figures.get(args.figure)
    real = jobs.index("val", args.index) if args.index else []
    with run.job(
        args.figure,
        inputs=real + jobs.class_names(args.classes) + jobs.samples(args.samples),
        outputs=[args.output],
        params={"figure": args.figure},
    ) as job:
        samples = {path.parents[1].name: path for path in args.samples}
        drawn = set().union(*(labels_of(path).tolist() for path in args.samples))
        if figure is None:
            index = ImageIndex.load(args.index)
            classes = spread(drawn & set(index.labels.tolist()))
            columns = {"real": real_images(index, classes, experiment.images.resolution)} if classes else {}
        else:
            classes, columns = [c for c in figure.classes if c in drawn], {}
        if not classes:
            raise InputError(
                f"{args.samples[0]} has images of the classes {min(drawn)} to {max(drawn)} and none of those wanted; "
                f"choose other classes for {args.figure}"
            )
        for name, path in samples.items():
            with fields_of(path), np.load(path) as stored:
                shown = SHOWN if figure is None else figure.images
                columns[name] = of_classes(stored["arr_0"], stored["labels"], classes, shown)
        side = next(iter(columns.values())).shape[2]
        inches = THUMBNAIL if figure is None else max(THUMBNAIL, side / DOTS)
        named = Classes.of_images(experiment.images, args.classes)
        save(sample_columns(columns, [named.title(c) for c in classes], inches), args.output)
        job.image(args.output, key=args.figure, step=0)


def labels_of(path: Path) -> Int[np.ndarray, " N"]:
    """The classes that the samples in an npz were drawn for."""
    with fields_of(path), np.load(path) as stored:
        return stored["labels"]


def spread(classes: Collection[int]) -> list[int]:
    """At most MOST_CLASSES of these, in even steps."""
    return sorted(classes)[:: max(1, len(classes) // MOST_CLASSES)][:MOST_CLASSES]


def real_images(index: ImageIndex, classes: Sequence[int], side: int) -> UInt8[np.ndarray, "rows images side side 3"]:
    """The first images of each class."""
    labels = np.asarray(index.labels)
    found = [[index.read(int(i)) for i in np.flatnonzero(labels == c)[:SHOWN]] for c in classes]
    return np.stack([_filled([np.asarray(center_crop(image, side)) for image in row], SHOWN, side) for row in found])


def of_classes(
    images: UInt8[np.ndarray, "N side side 3"], labels: Int[np.ndarray, " N"], classes: Sequence[int], count: int
) -> UInt8[np.ndarray, "rows images side side 3"]:
    """The first `count` images of each class, in the order in which they were drawn."""
    rows = [list(images[np.flatnonzero(labels == c)[:count]]) for c in classes]
    return np.stack([_filled(row, count, images.shape[1]) for row in rows])


def _filled(images: list[np.ndarray], count: int, side: int) -> np.ndarray:
    """The first `count` images, and white where there are fewer."""
    blank = np.full((side, side, 3), 255, np.uint8)
    return np.stack((images + [blank] * count)[:count])


if __name__ == "__main__":
    sys.exit(run_command(main))
