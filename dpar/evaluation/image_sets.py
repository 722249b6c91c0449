"""Sets of images to be measured, wherever they lie, and what a network says of them.

`open_set` takes ADM's npz (one, or the shards of one set of samples, or their folder), a folder of image files with or
without a sub-folder a class, Parquet files, WebDataset tars, or an index of the pipeline. `describe` sends a set
through a network by one of two profiles, which differ in how images become Inception's 299 x 299 pixels and whose
numbers do not mix: `adm` as TensorFlow 1 resized, inside the network; `clean` as clean-fid does, antialiased.
"""

import glob
import hashlib
import os
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int, UInt8
from torch import Tensor

from dpar.data.crops import center_crop, to_uint8
from dpar.data.decoding import UNREADABLE, decode_whole
from dpar.data.images import FolderImages, ImageIndex, ImageSource, open_images
from dpar.data.sources.source import ClassNames, described, enumerated
from dpar.data.workers import cores, mapped
from dpar.errors import InputError, shown
from dpar.evaluation.features import BATCH, ImageArray
from dpar.evaluation.folders import Contents
from dpar.files import fields_of, matching, sha256_file
from dpar.tracking.makers import check_recorded

Profile = Literal["adm", "clean"]
RESIZE = {"adm": "TensorFlow 1's bilinear, inside the network", "clean": "Pillow's bicubic, antialiased, on floats"}
CROP = "centre square, halved by averages, then bicubic (ADM)"
SUFFIXES = {".parquet": "parquet", ".tar": "webdataset"}


def known_labels(labels: Int[np.ndarray, "N"]) -> Int[np.ndarray, "N"] | None:
    """`labels` where every image has one; a negative number says that there is none."""
    return labels if (labels >= 0).all() else None


class ImageSet(ABC):
    """Images in a fixed order.

    Args:
        source: as the user named it.
        labels: one class per image, where the set has them.
        side: pixels of square images, where all are known to have the same; null = to be seen.
        moments: `mu`, `sigma`, `mu_s`, `sigma_s` of the larger set that these images stand for, where stored.
        classes: their names by label, where the set has them.
    """

    source: str
    labels: Int[np.ndarray, "N"] | None = None
    side: int | None = None
    moments: dict[str, np.ndarray]
    classes: ClassNames | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, rows: Int[np.ndarray, "n"], side: int | None) -> Iterator[UInt8[Tensor, "3 H W"]]:
        """These images, in rising order; with `side` the centre square at that size (ADM's crop)."""

    @abstractmethod
    def conditions(self) -> dict[str, Any]:
        """Conditions of the set, known once its images have been read."""


@dataclass
class Arrays(ImageSet):
    """The images of npz files, one after the other, each `arr_0` (N, H, W, 3) bytes; taken as they are."""

    files: Sequence[ImageArray]
    moments: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self):
        first = self.files[0]
        self.source, self.side = str(first.path), first.shape[1]
        for file in self.files:
            if file.shape[1] != self.side:
                raise InputError(
                    f"{file.path} holds images of {file.shape[1]} pixels and {first.path} of {self.side}; "
                    "give the shards of one set of samples"
                )
        labelled = [file for file in self.files if "labels" in file.arrays]
        if len(labelled) not in (0, len(self.files)):
            bare = next(file.path for file in self.files if "labels" not in file.arrays)
            raise InputError(
                f"{labelled[0].path} has labels and {bare} has none; give the shards of one set of samples"
            )
        if labelled:
            self.labels = known_labels(np.concatenate([file.arrays["labels"] for file in labelled]))
            names = (first.conditions or {}).get("classes")  # where they were made from images whose classes have some
            if self.labels is not None and isinstance(names, list) and all(isinstance(n, str | None) for n in names):
                self.classes = names
        if len(self.files) == 1:
            self.moments = {
                name: first.arrays[name] for name in ("mu", "sigma", "mu_s", "sigma_s") if name in first.arrays
            }

    def __len__(self) -> int:
        return sum(map(len, self.files))

    def read(self, rows: Int[np.ndarray, "n"], side: int | None) -> Iterator[UInt8[Tensor, "3 H W"]]:
        """These images as they are stored.

        Raises:
            InputError: they have another size than `side`, or a file ends too early.
        """
        if side not in (None, self.side):
            raise InputError(
                f"{self.source} holds images of {self.side} pixels, {side} are wanted: draw the samples at that size "
                "(they are resized before they become bytes), or choose another size"
            )
        wanted = np.zeros(len(self), bool)
        wanted[rows] = True
        of_files = np.split(wanted, np.cumsum([len(file) for file in self.files])[:-1])
        return (image for file, chosen in zip(self.files, of_files, strict=True) for image in file.read(chosen))

    def conditions(self) -> dict[str, Any]:
        """The settings of the sampling, or the origin of a reference, as recorded in the files."""
        drawn = self._sampling()
        folders = {name: drawn.pop(name) for name in ("class_folders", "class_order") if drawn and name in drawn}
        steps = [file.arrays["patches"] for file in self.files if "patches" in file.arrays]
        return {
            "source_digest": self._digest,
            "shards": len(self.files),
            "crop": "none",
            "drawn": drawn,
            "steps": float(np.concatenate(steps).mean()) if len(steps) == len(self.files) else None,
            **folders,
        }

    @cached_property
    def _digest(self) -> str:
        digests = [sha256_file(file.path) for file in self.files]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    def _sampling(self) -> dict[str, Any] | None:
        stated = [file.conditions for file in self.files if file.conditions is not None]
        with fields_of(self.source):
            sizes = sorted({int(size) for conditions in stated for size in conditions.pop("batches", ())})
        numbers = [conditions.pop("shard", None) for conditions in stated]
        if twice := [n for i, n in enumerate(numbers) if n is not None and n in numbers[:i]]:
            raise InputError(
                f"shard {twice[0]} of the samples {self.source} is there twice, under two names; give each shard once"
            )
        if stated and (len(stated) < len(self.files) or any(conditions != stated[0] for conditions in stated)):
            raise InputError(
                f"{self.source} and its fellow shards were not drawn alike (other model, settings or seed); "
                "give the shards of one set of samples"
            )
        own = {name: value for name, value in stated[0].items() if name != "classes"} if stated else {}
        return (own | ({"batches": sizes} if sizes else {})) if stated else None


class Indexed(ImageSet):
    """The images of an index of the pipeline."""

    def __init__(self, path: Path):
        self.index = ImageIndex.load(path)
        self.source, self.labels, self.side, self.moments = str(path), self.index.labels, self.index.resolution, {}
        self.classes = self.index.images.classes

    def __len__(self) -> int:
        return len(self.index)

    def read(self, rows: Int[np.ndarray, "n"], side: int | None) -> Iterator[UInt8[Tensor, "3 H W"]]:
        """The centre squares of these images."""
        return _ahead(lambda i: to_uint8(center_crop(self.index.read(i), side or self.index.resolution)), rows)

    def conditions(self) -> dict[str, Any]:
        """The index's digest."""
        return {"source_digest": self.index.digest, "crop": CROP}


class Files(ImageSet):
    """Image files that no index has checked: all of one square size, or cropped; grey ones are counted."""

    def __init__(self, source: str, images: ImageSource, left_alone: Mapping[str, int]):
        self.source, self.images, self.left_alone, self.moments = source, images, left_alone, {}
        self.labels = known_labels(images.labels)
        self.classes = images.classes if self.labels is not None else None
        self.cropped: int | None = None
        self._read: dict[int, tuple[str, bool, bool]] = {}  # number -> SHA-256, whether it is grey, and enlarged

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: Int[np.ndarray, "n"], side: int | None) -> Iterator[UInt8[Tensor, "3 H W"]]:
        """These images; their digests and how many are grey is known afterwards.

        Raises:
            InputError: an image cannot be read, or has an alpha channel.
        """
        self.cropped = side

        def load(i: int) -> UInt8[Tensor, "3 H W"]:
            try:
                data = self.images.data(i)
                found = decode_whole(data)
            except UNREADABLE as error:
                raise InputError(
                    f"image {shown(self.images.keys[i])} of {self.source} cannot be read ({error}); repair or remove it"
                ) from None
            if found.transparent:
                raise InputError(
                    f"image {shown(self.images.keys[i])} of {self.source} has an alpha channel (mode {found.mode}), "
                    "whose background nobody has stated; save it as RGB first"
                )
            enlarged = min(found.image.size) < (side or 0)
            self._read[i] = hashlib.sha256(data).hexdigest(), found.mode in ("1", "L"), enlarged
            return to_uint8(found.image if side is None else center_crop(found.image, side))

        return _ahead(load, rows)

    def conditions(self) -> dict[str, Any]:
        """The digest of names and bytes of what was read, how many are grey and were enlarged, and of class folders."""
        digest = hashlib.sha256()
        for i, (sha256, *_) in sorted(self._read.items()):
            digest.update(f"{self.images.keys[i]}\0{sha256}\0".encode(errors="surrogateescape"))
        return {
            "source_digest": digest.hexdigest(),
            "crop": CROP if self.cropped else "none",
            "grey_images": sum(grey for _, grey, _ in self._read.values()),
            **({"enlarged_images": enlarged} if (enlarged := sum(small for *_, small in self._read.values())) else {}),
            **({"left_alone": dict(self.left_alone)} if self.left_alone else {}),
            **self.class_folders(),
        }

    def class_folders(self) -> dict[str, Any]:
        """The number of class folders, and the first that is called after another number than its label."""
        if not isinstance(self.images, FolderImages) or self.labels is None:
            return {}
        names = list(map(str, self.images.classes or ()))
        other = [f"{name} is class {i}" for i, name in enumerate(names) if name.isdecimal() and int(name) != i]
        return {"class_folders": len(names), **({"class_order": other[0]} if other else {})}


def open_set(paths: str | Path | Sequence[str | Path]) -> ImageSet:
    """The images under a path or a pattern, or those of several npz files, the shards of one set.

    Raises:
        InputError: nothing that can be read is there, things of several kinds, or what was changed since a job made it.
    """
    paths = [os.path.expanduser(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    if not paths:
        raise InputError("no path is given; give an npz, a folder, an index or a pattern of shards of images")
    first = Path(paths[0])
    found = [Path(path) for path in (matching(paths[0]) if len(paths) == 1 else paths)]
    if not found:
        raise InputError(f"{first} does not exist; give an npz, a folder, an index or a pattern of shards of images")
    check_recorded(*found)
    kinds = {path.suffix if not path.is_dir() else "" for path in found}
    if kinds == {".npz"}:
        return Arrays([ImageArray.open(path) for path in found])
    if len(paths) > 1:
        raise InputError(f"{' '.join(map(str, paths))}: give one index (.json), or only npz files")
    if kinds == {".json"} and len(found) == 1:
        return Indexed(found[0])
    if first.is_dir():
        return _folder(first)
    if len(kinds) == 1 and (kind := SUFFIXES.get(*kinds)) is not None:
        return _files(str(first), open_images(kind, str(first)))
    counts = Counter("folders" if path.is_dir() else path.suffix or "without a suffix" for path in found)
    held = (
        ", of which there are " + ", ".join(f"{n} {what}" for what, n in sorted(counts.items()))
        if len(found) > 1
        else ""
    )
    raise InputError(
        f"{shown(str(first))} is no set of images{held}; expected an npz with `arr_0`, a folder of images or of npz "
        "shards, Parquet files, tars (a pattern in quotes such as 'DIR/*.parquet'), or an index/SPLIT.json of the "
        "pipeline"
    )


def _folder(path: Path) -> ImageSet:
    contents = Contents.of(path)
    kind = contents.only_kind(path)
    if kind == "folder":
        return _files(str(path), _class_folders(path))
    names = contents.here[kind]
    if kind == ".npz":
        return Arrays([ImageArray.open(path / name) for name in names])
    if kind in SUFFIXES:
        pattern = os.path.join(glob.escape(str(path)), f"*{kind}")
        return _files(str(path), open_images(SUFFIXES[kind], pattern), contents)
    for name in names:
        if (path / name).exists() and not (path / name).is_file():
            raise InputError(f"{shown(str(path / name))} is no file but a pipe, a socket or a device; remove it")
    return _files(str(path), FolderImages(str(path), [str(path)], names, np.full(len(names), -1), {}), contents)


def _class_folders(path: Path) -> FolderImages:
    """The images of class folders; those without images are counted among what was left alone.

    The others keep their numbers: an empty folder counts as a class, of which there is no image.
    """
    images = open_images("folder", str(path), every_class=False)
    assert isinstance(images, FolderImages)
    if empty := images.empty_classes():
        named = f"class folders without images ({enumerated(empty, 3)})"
        images.left_alone = {**images.left_alone, named: len(empty)}
    return images


def _files(source: str, images: ImageSource, contents: Contents | None = None) -> Files:
    """The image files of a source; other files next to them are reported and not measured."""
    left = images.left_alone | (contents.left_alone.summary() if contents else {})
    if left:
        print(described(left, f"{shown(source)}: left alone: "), file=sys.stderr)
    return Files(source, images, left)


def _ahead(load: Any, rows: Int[np.ndarray, "n"]) -> Iterator[UInt8[Tensor, "3 H W"]]:
    return mapped(load, map(int, rows), threads=cores(), ahead=2 * BATCH)
