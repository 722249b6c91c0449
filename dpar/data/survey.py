"""A look at a folder of images: splits, classes, sizes and unreadable files, before there is an experiment."""

import glob
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from dpar.data.decoding import FORMATS, UNREADABLE, decode
from dpar.data.images import ImageSource, open_images
from dpar.data.workers import cores, mapped, reported
from dpar.errors import InputError, did_you_mean, shown
from dpar.experiment.settings import MOST_CLASSES

MOST_READ = 2_000  # images of a split that are decoded, evenly spaced
TRAIN = ("train", "training")
VAL = ("val", "valid", "validation", "test")
Kind = Literal["folder", "parquet", "webdataset"]
_SUFFIXES: dict[Kind, str] = {"parquet": "parquet", "webdataset": "tar"}


@dataclass(frozen=True)
class Survey:
    """The images of a folder.

    Attributes:
        source: how they are stored.
        train: path or pattern of the training images.
        val: the same of held-out images; None where there are none.
        images: training images of each class.
        classes: names of the classes, where they have any.
        val_count: held-out images.
        read: how many images were decoded.
        unreadable: names of those that could not be, with the reason.
        sides: shorter sides of the others, in pixels.
        kinds: how many sizes there are among them, with the smallest and the largest as (width, height).
    """

    source: Kind
    train: str
    val: str | None
    images: tuple[int, ...]
    classes: tuple[str | None, ...]
    val_count: int
    read: int
    unreadable: tuple[str, ...]
    sides: tuple[int, ...]
    smallest: tuple[int, int]
    largest: tuple[int, int]

    @property
    def count(self) -> int:
        """Training images."""
        return sum(self.images)


def survey(folder: Path) -> Survey:
    """The images of `folder`.

    Raises:
        InputError: no images in a layout that experiments take, or none that can be read.
    """
    if not folder.is_dir():
        near = did_you_mean(folder.name, [p.name for p in folder.parent.iterdir()]) if folder.parent.is_dir() else ""
        raise InputError(
            f"{folder} is no folder{near}; give the folder that holds your images, one sub-folder per class"
        )
    source, train, val = splits_of(folder.expanduser().resolve())
    images = open_images(source, train)
    if len(images) and not 0 <= images.labels.min() <= images.labels.max() < MOST_CLASSES:
        label = min(images.labels.min(), 0) or images.labels.max()
        raise InputError(f"{train} has the label {label}; labels count the classes from 0")
    held_out = open_images(source, val, every_class=False) if val else None
    read = [(images, i) for i in _spaced(len(images))]
    read += [(held_out, i) for i in _spaced(len(held_out))] if held_out is not None else []
    looks = mapped(lambda place: _look(*place), read, threads=cores(), ahead=64)
    found = list(reported(looks, len(read), "read"))
    sizes = [look for look in found if isinstance(look, tuple)]
    if not sizes:
        raise InputError(f"no image of {train} can be read: {found[0] if found else 'it holds none'}")
    area = [width * height for width, height in sizes]
    counts = np.bincount(images.labels).tolist()
    return Survey(
        source=source,
        train=train,
        val=val,
        images=tuple(counts),
        classes=tuple(images.classes or [None] * len(counts))[: len(counts)],
        val_count=0 if held_out is None else len(held_out),
        read=len(read),
        unreadable=tuple(look for look in found if isinstance(look, str)),
        sides=tuple(min(size) for size in sizes),
        smallest=sizes[int(np.argmin(area))],
        largest=sizes[int(np.argmax(area))],
    )


def splits_of(folder: Path) -> tuple[Kind, str, str | None]:
    """The storage of the images of a folder, and the places of those for training and of the held-out ones.

    Raises:
        InputError: there is nothing that an experiment could read.
    """
    for kind, suffix in _SUFFIXES.items():
        files = sorted(glob.glob(f"{glob.escape(str(folder))}/**/*.{suffix}", recursive=True))
        if files:
            train, val = (_pattern(folder, files, names, suffix) for names in (TRAIN, VAL))
            below = "**/" * (Path(files[0]).parent != folder)
            return kind, train or f"{glob.escape(str(folder))}/{below}*.{suffix}", val
    folders = {entry.name.lower(): entry for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."}
    train, val = (next((str(folders[name]) for name in names if name in folders), None) for names in (TRAIN, VAL))
    if train and {*folders} <= {*TRAIN, *VAL}:
        return "folder", train, val
    if not folders:
        raise InputError(
            f"{folder} holds no sub-folders: one per class is needed, with images in it; if all are of one kind, "
            "put them into a sub-folder and give the folder above"
        )
    return "folder", str(folder), None


def _pattern(folder: Path, files: list[str], names: tuple[str, ...], suffix: str) -> str | None:
    """The pattern of the files whose name, or folder, begins with one of `names`."""
    for name in names:
        for pattern in (f"{name}*.{suffix}", f"*-{name}-*.{suffix}", f"{name}/*.{suffix}", f"data/{name}*.{suffix}"):
            if {*glob.glob(f"{glob.escape(str(folder))}/{pattern}")} & {*files}:
                return f"{glob.escape(str(folder))}/{pattern}"
    return None


def _spaced(count: int) -> list[int]:
    return np.linspace(0, count - 1, min(count, MOST_READ)).round().astype(int).tolist()


def _look(images: ImageSource, i: int) -> tuple[int, int] | str:
    """Width and height of an image, or its name and why it cannot be read."""
    try:
        data = images.data(i)
        decode(data)
        with warnings.catch_warnings(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            warnings.simplefilter("ignore")
            return image.size
    except UNREADABLE as error:
        return f"{shown(images.keys[i])} ({error})"
