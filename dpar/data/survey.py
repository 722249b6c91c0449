"""A look at a folder of images: splits, classes, sizes and unreadable files, before there is an experiment."""

import glob
import io
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import ExifTags, Image

from dpar.data.decoding import FORMATS, UNREADABLE, decode_whole
from dpar.data.images import ImageSource, open_images
from dpar.data.sources.source import enumerated
from dpar.data.sources.tar import INFO, stated_splits
from dpar.data.workers import cores, mapped, reported
from dpar.errors import InputError, did_you_mean, shown
from dpar.experiment.settings import MOST_CLASSES
from dpar.files import is_hidden, matching

MOST_READ = 2_000  # images of a split that are decoded, evenly spaced
TRAIN = ("train", "training")
VAL = ("val", "valid", "validation", "test")
_SIDES = {*TRAIN}, {*VAL, "testing", "eval", "dev"}  # how folders and files of training images and of others are called
Kind = Literal["folder", "parquet", "webdataset"]
_SUFFIXES: dict[Kind, str] = {"parquet": "parquet", "webdataset": "tar"}
_STORED = re.compile(
    r".+\.(parquet|parq|pq|tar(\.(gz|bz2|xz|zst|lz4))?|tgz|tbz2?|txz)", re.IGNORECASE
)  # in any spelling


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
        smallest: width and height of the smallest of them.
        largest: the same of the largest.
        turned: how many of them only stand upright by their EXIF orientation, which is ignored.
        transparent: how many have transparent parts, whose hidden colours are taken.
        unused: splits, or files, that hold other images.
        below: training images in folders below those of their classes.
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
    turned: int = 0
    transparent: int = 0
    unused: tuple[str, ...] = ()
    below: int = 0

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
    source, train, val, unused = splits_of(folder.expanduser().resolve())
    images = open_images(source, train)
    if len(images) and not 0 <= images.labels.min() <= images.labels.max() < MOST_CLASSES:
        label = min(images.labels.min(), 0) or images.labels.max()
        raise InputError(f"{train} has the label {label}; labels count the classes from 0")
    held_out = open_images(source, val, every_class=False) if val else None
    read = [(images, i) for i in _spaced(len(images))]
    read += [(held_out, i) for i in _spaced(len(held_out))] if held_out is not None else []
    looks = mapped(lambda place: _look(*place), read, threads=cores(), ahead=64)
    found = list(reported(looks, len(read), "read"))
    looked = [look for look in found if isinstance(look, _Look)]
    sizes = [look.size for look in looked]
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
        turned=sum(look.turned for look in looked),
        transparent=sum(look.transparent for look in looked),
        unused=unused,
        below=sum(key.count("/") > 1 for key in images.keys) if source == "folder" else 0,
    )


def splits_of(folder: Path) -> tuple[Kind, str, str | None, tuple[str, ...]]:
    """The storage of the images of a folder, the places of those for training and of the held-out ones, other splits.

    Raises:
        InputError: there is nothing that an experiment could read.
    """
    stored = _stored(folder)
    for kind, suffix in _SUFFIXES.items():
        files = [str(file) for file in stored if file.suffix == f".{suffix}"]
        if files:
            if left := [str(file.relative_to(folder)) for file in stored if file.suffix != f".{suffix}"]:
                raise InputError(
                    f"{folder} holds {len(files)} .{suffix} files and next to them {enumerated(left)}, whose images "
                    f"would be left out; expected .{suffix} files alone: rename, decompress or move the others, or "
                    "give the folder that holds one kind"
                )
            train, val = (_pattern(folder, files, names, suffix) for names in (TRAIN, VAL))
            if train is None:  # all of them, so that none is held out
                _check_no_stated_splits(folder, files)
                _check_no_splits(folder, ((path, _words(path)) for file in files for path in _below(folder, file)))
                below = "**/" * any(Path(file).parent != folder for file in files)
                return kind, f"{glob.escape(str(folder))}/{below}*.{suffix}", None, ()
            return kind, train, val, tuple(_unused(folder, {*files} - {*matching(train), *matching(val or "")}, suffix))
    folders = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name))
    named = {entry.name.lower(): entry for entry in reversed(folders)}
    train, val = (next((str(named[name]) for name in names if name in named), None) for names in (TRAIN, VAL))
    if train and {*named} <= {*TRAIN, *VAL}:
        return "folder", train, val, tuple(entry.name for entry in folders if str(entry) not in (train, val))
    if not folders:
        raise InputError(
            f"{folder} holds no sub-folders: one per class is needed, with images in it; if all are of one kind, "
            "put them into a sub-folder and give the folder above"
        )
    _check_no_splits(folder, _named_folders(folders))
    return "folder", str(folder), None, ()


def _unused(folder: Path, files: set[str], suffix: str) -> Iterator[str]:
    """The names of splits that these files are of, and those files that are of none."""
    for name in (*TRAIN, *VAL):
        if pattern := _pattern(folder, [*files], (name,), suffix):
            files = files - {*matching(pattern)}
            yield name
    yield from (os.path.relpath(file, folder) for file in sorted(files))


def _stored(folder: Path) -> list[Path]:
    """The files below a folder that may hold many images each, by their names; none that is hidden."""
    files = matching(f"{glob.escape(str(folder))}/**/*")
    return sorted(path for path in map(Path, files) if _STORED.fullmatch(path.name) and path.is_file())


def _check_no_splits(folder: Path, named: Iterable[tuple[Path, set[str]]]) -> None:
    """Refuses images of which all would be for training though some are called training images and others are not.

    Args:
        folder: that is looked at.
        named: files and folders below it that cannot be told apart as splits, with the words that they are called.
    """
    training, held_out = None, None
    for path, words in named:
        training = training or (path if words & _SIDES[0] else None)
        held_out = held_out or (path if words & _SIDES[1] else None)
    if training is not None and held_out is not None:
        first, second = (shown(str(path.relative_to(folder))) for path in (training, held_out))
        raise InputError(
            f"{folder} holds {first} and {second}, which look like training and held-out images, in a layout that is "
            f"not known, so that all would be trained on; expected folders called {TRAIN[0]} and {VAL[0]} (or "
            f"{', '.join(VAL[1:])}) with no other folder next to them, or files whose names begin so: rename them, "
            "move other folders away, or give the folder that holds these alone"
        )


def _check_no_stated_splits(folder: Path, files: Sequence[str]) -> None:
    """Refuses tars of which all would be for training though a list next to them counts some to another split."""
    for place in sorted({os.path.dirname(file) for file in files}):
        first = [min(found) for split in stated_splits(place) if (found := {*split} & {*files})]
        if len(first) > 1:
            named = enumerated([os.path.relpath(file, folder) for file in first])
            raise InputError(
                f"{named} are of {len(first)} splits, as {INFO} next to them says, and their names do not say so, so "
                f"that all would be trained on; move them into folders called {TRAIN[0]} and {VAL[0]}, or give a "
                "folder with the files of one split"
            )


def _words(path: Path) -> set[str]:
    return {*re.findall("[a-z]+", path.name.lower())}


def _below(folder: Path, file: str) -> list[Path]:
    """A file, and the folders between it and the folder that is looked at."""
    path = Path(file)
    return [path, *(parent for parent in path.parents if folder in parent.parents)]


def _named_folders(folders: Sequence[Path]) -> Iterable[tuple[Path, set[str]]]:
    """Folders and those in them by their whole names, since classes may be called `train station` and `test tube`.

    A folder that holds others is no class as a rule: of it each word counts; and so it does of two that are called
    alike otherwise, as `train_images` and `test_images`, `train2017` and `val2017`.
    """
    rests = [{rest for folder in folders for word, rest in _ends(folder) if word in names} for names in _SIDES]
    for folder in folders:
        below = [entry for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name)]
        alike = {word for word, rest in _ends(folder) if all(rest in of_side for of_side in rests)}
        yield folder, {folder.name.lower()} | alike | (_words(folder) if below else set())
        for entry in below:
            yield entry, {entry.name.lower()}


def _ends(path: Path) -> list[tuple[str, tuple[str, ...]]]:
    """The first and the last word of a name, each with the words that are left."""
    words = re.findall("[a-z]+", path.name.lower())
    return [(words[0], (*words[1:],)), (words[-1], (*words[:-1],))] if words else []


def _pattern(folder: Path, files: list[str], names: tuple[str, ...], suffix: str) -> str | None:
    """The pattern of the files whose name, or folder, begins with one of `names`."""
    for name in names:
        for pattern in (f"{name}*.{suffix}", f"*-{name}-*.{suffix}", f"{name}/*.{suffix}", f"data/{name}*.{suffix}"):
            if {*matching(f"{glob.escape(str(folder))}/{pattern}")} & {*files}:
                return f"{glob.escape(str(folder))}/{pattern}"
    return None


def _spaced(count: int) -> list[int]:
    return np.linspace(0, count - 1, min(count, MOST_READ)).round().astype(int).tolist()


class _Look(NamedTuple):
    """An image's width and height, whether EXIF data turn it, and whether it has an alpha channel."""

    size: tuple[int, int]
    turned: bool
    transparent: bool


def _look(images: ImageSource, i: int) -> _Look | str:
    """The image, or its name and why it cannot be read."""
    try:
        data = images.data(i)
        transparent = decode_whole(data).transparent
        with warnings.catch_warnings(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            warnings.simplefilter("ignore")
            return _Look(image.size, image.format != "TIFF" and _orientation(image) in range(2, 9), transparent)
    except UNREADABLE as error:
        return f"{shown(images.keys[i])} ({error})"


def _orientation(image: Image.Image) -> int | None:
    """The EXIF orientation, 1 for upright; None where there is none, or the data are damaged, which are not used."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # as in decoding: foreign bytes may raise anything
        return None
