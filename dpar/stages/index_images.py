"""Lists the images of a split, reads each once, and counts classes and what could not be read."""

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from dpar import tracking
from dpar.data.class_names import numbered_as
from dpar.data.classes import Classes
from dpar.data.images import ImageIndex, ImageSource, open_images, repeated_images, shared_images
from dpar.data.sources.source import described, enumerated
from dpar.data.subsets import first_of_classes, held_out, spread_over_classes
from dpar.errors import InputError, run_command, shown
from dpar.experiment.settings import Images
from dpar.workflow import jobs
from dpar.workflow.stage import SPLIT, Stage, flag

_MOST_SHARED = 0.01  # share of the images that may be copies; published sets have a few, also across splits

STAGE = Stage(
    "index_images",
    __doc__,
    SPLIT,
    flag("--images", "generated images; by default the experiment's path for the split", required=False),
    flag("--classes-of", "index of the training images, for the user's held-out images", required=False),
    flag("--output", "the index, JSON"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage.

    A class without images is an error for the training split, unless fewer images than classes are to be used. Held-out
    images may lack some classes, and take the numbers of the training images' classes by name.

    Raises:
        InputError: no images, unreadable ones beyond what the experiment allows, labels that do not fit it, or
            held-out images that the training split has too.
    """
    run = STAGE.start(argv)
    args, images = run.args, run.experiment.images
    source, path = source_of(args, images)
    with run.job(
        args.split,
        inputs=[
            *(tracking.made_by(f"generate_images[{args.split}]", args.images) if args.images else []),
            *(jobs.index("train", args.classes_of) if args.classes_of else []),
        ],
        outputs=[args.output],
        params={"split": args.split, "source": source, "path": path, "max_unreadable": images.max_unreadable},
    ) as job:
        training, every_class = args.classes_of and ImageIndex.load(args.classes_of), args.split == "train"
        found = images_of_split(open_images(source, path, every_class=every_class), args.split, images, training)
        index = ImageIndex.build(
            found,
            resolution=images.resolution,
            num_classes=images.num_classes,
            max_unreadable=images.max_unreadable,
            every_class=every_class and (images.max_train or images.num_classes) >= images.num_classes,
        )
        if training is not None:
            _check_shared(index, training, images)
        _warn(index)
        classes = Classes.of_images(images, index)
        index.save(args.output)
        if classes.names:
            job.tags({"dpar.classes": say_names(classes, index, path, training)})
        print(f"{said(index)}{described(found.left_alone, '; left alone: ')}: {path}")
        job.summary(counts(index) | {"images/left_alone": sum(found.left_alone.values())})


def say_names(classes: Classes, index: ImageIndex, path: str, training: ImageIndex | None) -> str:
    """The names of the classes, printed and given back, next to those of the images where they differ."""
    paired = classes.paired(index.images.classes)
    print(f"classes: {paired}")
    if training is None and (repeated := classes.repeated()):
        print(
            f"warning: several classes of {path} have one name: {repeated}; if they are one class, correct the labels, "
            "else give each a name of its own",
            file=sys.stderr,
        )
    if training is None and (misnumbered := classes.misnumbered()):
        print(
            f"warning: classes of {path} that are named by a number have another as their label: {misnumbered}; labels "
            "follow the order of the names as text, so pad the numbers with zeros if names are to be labels",
            file=sys.stderr,
        )
    return paired


def counts(index: ImageIndex) -> dict[str, int]:
    """Images and classes of an index, as the dashboard shows them."""
    of_classes = index.class_counts
    return {
        "images": len(index),
        "images/skipped": len(index.skipped),
        "classes": int((of_classes > 0).sum()),
        "classes/fewest": int(of_classes.min()),
        "classes/most": int(of_classes.max()),
    }


def said(index: ImageIndex) -> str:
    """The same in one line."""
    found = counts(index)
    small = f"{index.enlarged} smaller than {index.resolution} pixels and enlarged, " if index.enlarged else ""
    return (
        f"{found['images']} images, {found['classes']} of {index.num_classes} classes with {found['classes/fewest']} "
        f"to {found['classes/most']} images each, {small}{found['images/skipped']} left out as unreadable"
    )


def source_of(args: argparse.Namespace, images: Images) -> tuple[str, str]:
    """The kind of source that the split's images come from, and its path.

    Raises:
        InputError: generated images, or the classes of the training images, are not named.
    """
    path = str(args.images) if args.images else images.path(args.split)
    if args.split == "val" and images.source != "generated" and args.classes_of is None:
        raise InputError(
            "held-out images take the class numbers of the training images: give --classes-of index/train.json; "
            "`dpar run`, started again, does so itself"
        )
    if path is None:
        raise InputError(f"{args.experiment}: images.source is `generated`; name the generated file with --images")
    return "parquet" if images.source == "generated" else images.source, path


def images_of_split(found: ImageSource, split: str, images: Images, training: ImageIndex | None) -> ImageSource:
    """The images of a split, with their classes numbered as those of the training images where these are given."""
    if images.held_out is not None:
        taken = held_out(found, images.held_out)
        found = found.keep(np.flatnonzero(taken == (split == "val")))
    if training is not None:
        found = numbered_as(found, training.images.classes)
    if split == "val" and images.max_val is not None and images.max_val < len(found):
        found = found.keep(spread_over_classes(found.labels, images.max_val))
    if split == "train" and images.max_train is not None and images.max_train < len(found):
        found = found.keep(first_of_classes(found.labels, images.max_train))
    return found


def _check_shared(index: ImageIndex, training: ImageIndex, images: Images) -> None:
    """Raises `InputError` if more held-out images than a few are training images; says how many are."""
    shared = shared_images(index, training)
    if not shared:
        return
    pairs = ", ".join(f"{shown(held_out)} = {shown(trained)}" for held_out, trained in shared[:3])
    said = (
        f"{len(shared)} of {len(index)} held-out images ({index.images.path}) are training images too, byte for byte: "
        f"{pairs}{', ...' if len(shared) > 3 else ''}"
    )
    if len(shared) > _MOST_SHARED * len(index) and not images.allow_shared:
        raise InputError(
            f"{said}; what is measured on them would say nothing about new images: "
            "correct `images.val` (with `images.held_out`: remove the copies), or say `images.allow_shared: true` if "
            "it is meant"
        )
    print(f"warning: {said}", file=sys.stderr)


def _warn(index: ImageIndex) -> None:
    """Warns of images that are left out or there under two labels, and of copies if they are more than a few."""
    if index.skipped:
        named = enumerated([f"{image['key']} ({image['reason']})" for image in index.skipped], 3)
        print(
            f"warning: {len(index.skipped)} of {len(index) + len(index.skipped)} images of {index.images.path} cannot "
            f"be read and are left out: {named}",
            file=sys.stderr,
        )
    same, other = repeated_images(index)
    if other:
        print(f"{_repeated(index, other, 'another label')}; correct the labels, or remove one of each", file=sys.stderr)
    if len(same) > _MOST_SHARED * len(index):
        print(f"{_repeated(index, same, 'the same label')}; each counts as an image of its own", file=sys.stderr)


def _repeated(index: ImageIndex, pairs: Sequence[tuple[int, int]], label: str) -> str:
    named = [" = ".join(f"{index.keys[i]} (class {index.labels[i]})" for i in pair) for pair in pairs]
    return (
        f"warning: {len(pairs)} of {len(index)} images of {index.images.path} are copies of others under {label}, byte "
        f"for byte: {enumerated(named, 3)}"
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
