"""The index that fixes which images of a source a run uses.

`open_images` lists a source, `ImageIndex.build` reads every image once, leaves out what cannot be read (if the
experiment allows it) and counts the classes, and `ImageIndex.load` gives random access to what is left.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import Image

from dpar.data.decoding import UNREADABLE, decode
from dpar.data.sources import SOURCES, FolderImages, ImageSource, open_images
from dpar.data.sources.source import ClassNames, enumerated, file_stamp
from dpar.data.workers import cores, mapped, reported
from dpar.errors import InputError, shown
from dpar.files import read_json, sealed, write_text
from dpar.statement import fields_for

__all__ = ["FolderImages", "ImageIndex", "ImageSource", "open_images", "shared_images"]

_CHUNK = 256  # images a task when all are read
_NAMED = 10  # images that an error names
_CHECK = 16  # hexadecimal digits of an image's SHA-256 that the index keeps


@dataclass(eq=False, repr=False)
class ImageIndex:
    """The images that a run uses, in order, with those left out and the reasons.

    Args:
        images: the readable ones.
        resolution: pixels, the side of the square that is cut from them.
        num_classes: labels lie below it.
        skipped: `{key, reason}` of each image that could not be read.
        digest: of the order, keys, labels and bytes of the images.
        checks: the first 16 hexadecimal digits of each image's SHA-256, concatenated.
        sizes: bytes of the files that hold the images, in the order of `images.stamped()`; empty = not known.
        enlarged: how many have a shorter side than `resolution`; counted when the index is built.
    """

    images: ImageSource
    resolution: int
    num_classes: int
    skipped: list[dict[str, str]]
    digest: str
    checks: str
    sizes: list[int]
    enlarged: int = 0

    @classmethod
    def build(
        cls,
        images: ImageSource,
        *,
        resolution: int,
        num_classes: int,
        max_unreadable: float = 0.0,
        every_class: bool = True,
    ) -> "ImageIndex":
        """The index of a source; every image is read and decoded once.

        Args:
            resolution: pixels.
            num_classes: classes that labels may name.
            max_unreadable: share of images that may be left out.
            every_class: a class without images is an error.

        Raises:
            InputError: a label out of range, too many unreadable images, or a class without images.
        """
        _check_labels(images, num_classes)
        good, skipped, checks, sha, enlarged = [], [], [], hashlib.sha256(), 0
        chunks = [range(i, min(i + _CHUNK, len(images))) for i in range(0, len(images), _CHUNK)]
        threads = cores()
        checked = mapped(lambda chunk: [_check(images, i) for i in chunk], chunks, threads=threads, ahead=2 * threads)
        for chunk, results in zip(chunks, reported(checked, len(images), "read", size=_CHUNK), strict=True):
            for i, (sha256, side, reason) in zip(chunk, results, strict=True):
                if reason is None:
                    enlarged += side < resolution
                    good.append(i)
                    checks.append(sha256[:_CHECK])
                    sha.update(f"{images.keys[i]}\0{images.labels[i]}\0{sha256}\0".encode(errors="surrogateescape"))
                else:
                    skipped.append({"key": images.keys[i], "reason": reason})
        if len(skipped) > max_unreadable * len(images) or not good:
            raise InputError(_unreadable(images, skipped, max_unreadable))
        kept = images.keep(np.array(good))
        if kept.classes is not None:  # a name for each, null where there is none
            kept.classes = [*kept.classes, *[None] * num_classes][:num_classes]
        index = cls(
            kept,
            resolution=resolution,
            num_classes=num_classes,
            skipped=skipped,
            digest=sha.hexdigest(),
            checks="".join(checks),
            sizes=[file_stamp(kept.place(name)).size for name in kept.stamped()],
            enlarged=enlarged,
        )
        empty = np.flatnonzero(index.class_counts == 0)
        if every_class and len(empty):
            named = enumerated([str(label) for label in empty])
            raise InputError(
                f"{len(empty)} of {num_classes} classes have no readable image in {images.path}: {named}; "
                "add images of them, or correct `images.num_classes` and the labels"
            )
        return index

    @classmethod
    def load(cls, path: str | Path) -> "ImageIndex":
        """The index that `save` wrote.

        Raises:
            InputError: the file is missing or is no index.
        """
        values = read_json(path)
        try:
            where, *files = _places(Path(path), values)
            locations = {name: np.array(column, np.int64) for name, column in values["locations"].items()}
            labels, keys, classes = np.array(values["labels"], np.int64), values["keys"], values.get("classes")
            # made when they were not written down
            if "classes" not in values and values["source"] == FolderImages.kind:
                classes = _classes_of_folders(keys, labels, values["num_classes"])
            images = SOURCES[values["source"]](
                where, files, keys, labels, locations, classes=classes,
                left_alone=values.get("left_alone"),
            )  # fmt: skip
            images.listed = values.get("listed")
            fields = {name: values[name] for name in ("resolution", "num_classes", "skipped", "digest", "checks")}
            counts = {len(keys), *map(len, locations.values()), len(fields["checks"]) / _CHECK}
            if counts != {len(labels)} or not all(isinstance(key, str) for key in keys):
                raise TypeError
            index = cls(images, **fields, sizes=list(values.get("sizes", ())))
            if len(index) and not 0 <= labels.min() <= labels.max() < index.num_classes:
                raise TypeError
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError):
            raise InputError(f"{path} is no index of images; make it again with the stage index_images") from None
        return index

    def save(self, path: str | Path) -> None:
        """Writes the index as JSON, one field per line; images in its own results by paths from the index."""
        named, inside = [self.images.path, *self.images.files], False
        if relative := _from_index(Path(path), named):
            named, inside = relative, True
        values = {
            "source": self.images.kind,
            "path": named[0],
            "from_index": inside,
            "resolution": self.resolution,
            "num_classes": self.num_classes,
            "classes": self.images.classes,  # among the first: the rules look for it there
            "count": len(self),
            "class_counts": self.class_counts.tolist(),
            "skipped": self.skipped,
            "left_alone": self.images.left_alone,
            "listed": self.images.listed,
            "digest": self.digest,
            "files": named[1:],
            "sizes": self.sizes,
            "labels": self.labels.tolist(),
            "keys": self.keys,
            "checks": self.checks,
            "locations": {name: column.tolist() for name, column in self.images.locations.items()},
        }
        whole = sealed(values, fields_for(path)).items()
        lines = (f"{json.dumps(name)}: {json.dumps(value, separators=(',', ':'))}" for name, value in whole)
        write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def keys(self) -> list[str]:
        """Names of the images."""
        return self.images.keys

    @property
    def labels(self) -> Int[np.ndarray, "N"]:
        """Classes of the images (int32)."""
        return self.images.labels

    @property
    def class_counts(self) -> Int[np.ndarray, "C"]:
        """Images of each class."""
        return np.bincount(self.labels, minlength=self.num_classes)

    def read(self, i: int) -> Image.Image:
        """Image `i` as 8-bit RGB, in the size it is stored in.

        Raises:
            InputError: it cannot be read any more, or is no longer the image that was indexed.
        """
        return self.images.read(i, self.checks[_CHECK * i : _CHECK * (i + 1)])


def _from_index(index: Path, names: Sequence[str]) -> list[str] | None:
    """Paths relative to the folder of `index`, so that its results can be moved; null if one lies outside of them."""
    folder = os.path.dirname(os.path.abspath(index))
    places = [os.path.abspath(name) for name in names]
    if os.path.basename(folder) != "index" or any(not p.startswith(os.path.dirname(folder) + os.sep) for p in places):
        return None
    return [os.path.relpath(place, folder) for place in places]


def _places(index: Path, values: Mapping[str, Any]) -> list[str]:
    """The source's path and files as they are now.

    Older indices name generated images by where the results were at that time.
    """
    named = [values["path"], *values["files"]]
    if values.get("from_index"):
        return [os.path.normpath(os.path.join(index.parent, name)) for name in named]
    moved = [index.parent.parent.joinpath(*Path(name).parts[-2:]) for name in named]
    if all(place.parent.name == "images" and place.exists() for place in moved) and not any(map(os.path.exists, named)):
        return list(map(str, moved))
    return named


def _unreadable(images: ImageSource, skipped: Sequence[Mapping[str, str]], allowed: float) -> str:
    named = "; ".join(f"{shown(s['key'])} ({s['reason']})" for s in skipped[:_NAMED])
    more = f"; and {len(skipped) - _NAMED} more" if len(skipped) > _NAMED else ""
    return (
        f"{len(skipped)} of {len(images)} images of {images.path} cannot be read: {named}{more}; repair or "
        f"remove them, or raise `images.max_unreadable` (now {allowed:g}, a share) to go on without them"
    )


def _check(images: ImageSource, i: int) -> tuple[str, int, str | None]:
    """SHA-256 and shorter side of image `i`, and why it cannot be read, if so."""
    try:
        data = images.data(i)
        side = min(decode(data).size)
    except UNREADABLE as error:
        return "", 0, str(error) or type(error).__name__
    return hashlib.sha256(data).hexdigest(), side, None


def shared_images(index: ImageIndex, training: ImageIndex) -> list[tuple[str, str]]:
    """Images of `index` that are images of `training` too, byte for byte: their keys there and here."""
    known = dict(zip(_checks(training), training.keys, strict=True))
    return [(key, known[check]) for check, key in zip(_checks(index), index.keys, strict=True) if check in known]


def repeated_images(index: ImageIndex) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Images that are there before, byte for byte, and where: those of the same label, and those of another."""
    _, first, which = np.unique(np.array(_checks(index)), return_index=True, return_inverse=True)
    again = np.flatnonzero(first[which] != np.arange(len(index)))
    alike = index.labels[first[which[again]]] == index.labels[again]
    same, other = (list(zip(again[x].tolist(), first[which[again[x]]].tolist(), strict=True)) for x in (alike, ~alike))
    return same, other


def _checks(index: ImageIndex) -> list[str]:
    return [index.checks[i : i + _CHECK] for i in range(0, len(index.checks), _CHECK)]


def _check_labels(images: ImageSource, num_classes: int) -> None:
    """Raises `InputError` for labels of `num_classes` or more, or a training set with another number of folders."""
    if isinstance(images, FolderImages) and images.classes is not None and len(images.classes) != num_classes:
        raise InputError(
            f"{images.path} holds {len(images.classes)} class folders, expected {num_classes}; "
            "correct `images.num_classes` or the folder: labels are counted off the folders' names"
        )
    outside = np.flatnonzero((images.labels < 0) | (images.labels >= num_classes))
    if len(outside):
        raise InputError(
            f"label out of range: {len(outside)} labels of {images.path} lie outside 0 to {num_classes - 1}, the first "
            f"of them {images.labels[outside[0]]} of image {shown(images.keys[outside[0]])}; "
            "correct `images.num_classes` or the labels"
        )


def _classes_of_folders(keys: Sequence[str], labels: Int[np.ndarray, "N"], count: int) -> ClassNames:
    """The names of class folders as the keys begin with them, by label."""
    names: list[str | None] = [None] * count
    for key, label in zip(keys, labels.tolist(), strict=True):
        names[label] = key.partition("/")[0]
    return names
