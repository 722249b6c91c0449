"""Images from a folder, Parquet or WebDataset tars, and the index that fixes which of them a run uses.

`open_images` lists a source, `ImageIndex.build` reads every image once, leaves out what cannot be read (if the
experiment allows it) and counts the classes, and `ImageIndex.load` gives random access to what is left.
"""

import glob
import hashlib
import json
import os
import tarfile
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int
from PIL import Image

from dpar.data.decoding import SUFFIXES, UNREADABLE, decode
from dpar.data.workers import mapped, reported
from dpar.errors import InputError
from dpar.files import read_json, write_text

_ROW_GROUP_CACHE = 2**30  # bytes of encoded images that a Parquet source keeps at hand
_CHUNK = 256  # images a task when all are read
_NAMED = 10  # images that an error names
_CHECK = 16  # hexadecimal digits of an image's SHA-256 that the index keeps


class ImageSource(ABC):
    """Images with keys and labels, read by number.

    Args:
        path: folder, file or glob, as the user wrote it.
        files: what the locations count.
        keys: names, one an image.
        labels: classes.
        locations: arrays that say where each image lies; the names are those of `location_names`.
    """

    kind: str
    location_names: tuple[str, ...]

    def __init__(
        self,
        path: str,
        files: Sequence[str],
        keys: Sequence[str],
        labels: Int[np.ndarray, "N"],
        locations: dict[str, Int[np.ndarray, "N"]],
    ):
        self.path = path
        self.files = list(files)
        self.keys = list(keys)
        self.labels = np.asarray(labels, np.int32)
        self.locations = {name: np.asarray(locations[name], np.int64) for name in self.location_names}

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    @abstractmethod
    def scan(cls, path: str) -> "ImageSource":
        """All images of the source, in a fixed order."""

    @abstractmethod
    def data(self, i: int) -> bytes:
        """The file of image `i`."""

    def read(self, i: int, check: str = "") -> Image.Image:
        """Image `i` as 8-bit RGB.

        Args:
            i: its number.
            check: how the SHA-256 of its file must begin.

        Raises:
            InputError: it cannot be read, or is another one.
        """
        try:
            data = self.data(i)
            if not hashlib.sha256(data).hexdigest().startswith(check):
                raise ValueError("its file has changed since it was indexed")
            return decode(data)
        except UNREADABLE as error:
            raise InputError(
                f"image {self.keys[i]} of {self.path} cannot be read ({error}); repair or remove it, and index again"
            ) from error

    def keep(self, numbers: Int[np.ndarray, "M"]) -> "ImageSource":
        """The source with these images only."""
        return type(self)(
            self.path,
            self.files,
            [self.keys[i] for i in numbers],
            self.labels[numbers],
            {name: column[numbers] for name, column in self.locations.items()},
        )


class FolderImages(ImageSource):
    """A folder with one sub-folder a class; labels are the places of the sub-folders in sorted order.

    Folders may be nested below a class. Names that begin with a dot and files without the suffix of an image are left
    alone.
    """

    kind = "folder"
    location_names = ()

    @classmethod
    def scan(cls, path: str) -> "ImageSource":
        """All images, by class and then by name."""
        root = Path(path).expanduser()
        if not root.is_dir():
            raise InputError(f"the image folder {path} does not exist; it must hold one sub-folder a class")
        classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and entry.name[0] != ".")
        if not classes:
            raise InputError(
                f"the image folder {path} holds no sub-folders; it must hold one a class, with images in it"
            )
        keys, labels = [], []
        for label, name in enumerate(classes):
            found = []
            for folder, folders, files in os.walk(root / name, followlinks=True):
                folders[:] = sorted(f for f in folders if f[0] != ".")
                relative = Path(folder).relative_to(root).as_posix()
                found += [f"{relative}/{f}" for f in files if f[0] != "." and f.lower().endswith(SUFFIXES)]
            if not found:
                raise InputError(
                    f"the class folder {root / name} holds no images ({', '.join(SUFFIXES)}); "
                    "add some, or remove the folder in all splits"
                )
            keys += sorted(found)
            labels += [label] * len(found)
        return cls(path, [str(root)], keys, np.array(labels), {})

    def data(self, i: int) -> bytes:
        """The file of image `i`."""
        return Path(self.files[0], self.keys[i]).read_bytes()


class ParquetImages(ImageSource):
    """Parquet files with columns `key` (text), `image` (the bytes of an image file) and `label` (a whole number).

    An image is read with its row group; recently used row groups are kept, up to 1 GiB. Sets larger than that are read
    quickly in order, and in random order only if their row groups are small.
    """

    kind = "parquet"
    location_names = ("file", "group", "row")

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._groups: OrderedDict[tuple[int, int], pa.ChunkedArray] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def scan(cls, path: str) -> "ImageSource":
        """All rows, file by file in the order of their names."""
        files = _matches(path, "Parquet file")
        keys: list[str] = []
        labels, locations = [], {name: [] for name in cls.location_names}
        for number, file in enumerate(files):
            try:
                parquet = pq.ParquetFile(file)
                schema = parquet.schema_arrow
                missing = {"key", "image", "label"} - set(schema.names)
                if missing:
                    raise InputError(
                        f"{file} has no column {' or '.join(sorted(missing))} but {', '.join(schema.names)}; "
                        "expected key (text), image (bytes of an image file) and label (a whole number)"
                    )
                kind = schema.field("image").type
                if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
                    raise InputError(f"column image of {file} is {kind}, expected binary: the bytes of an image file")
                for group in range(parquet.num_row_groups):
                    table = parquet.read_row_group(group, columns=["key", "label"])
                    column = table.column("label")
                    if not pa.types.is_integer(column.type) or column.null_count:
                        raise InputError(
                            f"column label of {file} is {column.type} with {column.null_count} nulls, "
                            "expected whole numbers without nulls"
                        )
                    keys += map(str, table.column("key").to_pylist())
                    labels.append(column.to_numpy())
                    for name, values in zip(
                        cls.location_names,
                        (np.full(len(table), number), np.full(len(table), group), np.arange(len(table))),
                        strict=True,
                    ):
                        locations[name].append(values)
            except (pa.ArrowException, OSError) as error:
                raise InputError(f"{file} is not a whole Parquet file ({error}); fetch or make it again") from error
        columns = {name: np.concatenate([np.empty(0, np.int64), *parts]) for name, parts in locations.items()}
        return cls(path, files, keys, np.concatenate([np.empty(0, np.int32), *labels]), columns)

    def data(self, i: int) -> bytes:
        """The file of image `i`."""
        file, group, row = (int(self.locations[name][i]) for name in self.location_names)
        with self._lock:
            if (file, group) in self._groups:
                self._groups.move_to_end((file, group))
            else:
                try:
                    table = pq.ParquetFile(self.files[file]).read_row_group(group, columns=["image"])
                except pa.ArrowException as error:
                    raise OSError(f"row group {group} of {self.files[file]} is damaged: {error}") from error
                self._groups[file, group] = table.column("image")
                while len(self._groups) > 1 and sum(c.nbytes for c in self._groups.values()) > _ROW_GROUP_CACHE:
                    self._groups.popitem(last=False)
            value = self._groups[file, group][row].as_py()
        if value is None:
            raise ValueError("the row has no image")
        return value


class TarImages(ImageSource):
    """WebDataset tars: for each key one image (`.jpg`, `.png`, ...) and one `.cls` with its label as text.

    The place of each image in its tar is listed once; after that, images are read in any order.
    """

    kind = "webdataset"
    location_names = ("file", "offset", "size")

    @classmethod
    def scan(cls, path: str) -> "ImageSource":
        """All samples, tar by tar in the order of their names."""
        files = _matches(path, "tar")
        keys: list[str] = []
        labels: list[int] = []
        locations = {name: [] for name in cls.location_names}
        for number, file in enumerate(files):
            images, classes = _tar_members(file)
            for key, (offset, size) in images.items():
                keys.append(key)
                labels.append(classes[key])
                for name, value in zip(cls.location_names, (number, offset, size), strict=True):
                    locations[name].append(value)
        columns = {name: np.array(values, np.int64) for name, values in locations.items()}
        return cls(path, files, keys, np.array(labels, np.int32), columns)

    def data(self, i: int) -> bytes:
        """The file of image `i`."""
        file, offset, size = (int(self.locations[name][i]) for name in self.location_names)
        with open(self.files[file], "rb", buffering=0) as tar:
            return os.pread(tar.fileno(), size, offset)


def _tar_members(file: str) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """Where the image of each key lies (offset, bytes), and the label of each key."""
    images: dict[str, tuple[int, int]] = {}
    classes: dict[str, int] = {}
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if not member.isfile() or not stem:
                    continue
                if f".{suffix.lower()}" in SUFFIXES:
                    if key in images:
                        raise InputError(f"sample {key} of {file} has two images; keep one")
                    images[key] = member.offset_data, member.size
                elif suffix == "cls":
                    text = tar.extractfile(member).read()  # type: ignore[union-attr]
                    try:
                        classes[key] = int(text)
                    except ValueError:
                        raise InputError(f"{member.name} of {file} holds {text[:20]!r}, expected a label") from None
                tar.members = []  # type: ignore  # every header would be kept
    except tarfile.TarError as error:
        raise InputError(
            f"{file} is not a whole, uncompressed tar ({error}); fetch it again, or decompress it: "
            "images are read from the middle of it"
        ) from error
    if lonely := images.keys() ^ classes.keys():
        key = min(lonely)
        raise InputError(
            f"sample {key} of {file} has no {'label (.cls)' if key in images else 'image'}; add or remove it"
        )
    return images, classes


def _matches(path: str, what: str) -> list[str]:
    """The files that `path` names, sorted."""
    files = sorted(f for f in glob.glob(os.path.expanduser(path)) if os.path.isfile(f))
    if not files:
        raise InputError(f"no {what} matches {path}; give a file, or a pattern such as folder/train-*")
    return files


_SOURCES: dict[str, type[ImageSource]] = {kind.kind: kind for kind in (FolderImages, ParquetImages, TarImages)}


def open_images(source: str, path: str) -> ImageSource:
    """The images of a source: `folder`, `parquet` or `webdataset`.

    Raises:
        InputError: nothing is there, or it is not what `source` says.
    """
    images = _SOURCES[source].scan(path)
    if not len(images):
        raise InputError(f"{path} holds no images; add some, or correct the path in the experiment")
    return images


class ImageIndex:
    """The images that a run uses, in their order, with what was left out and why.

    Args:
        images: the readable ones.
        resolution: pixels, the side of the square that is cut from them.
        num_classes: labels lie below it.
        skipped: `{key, reason}` of each image that could not be read.
        digest: of the order, keys, labels and bytes of the images.
        checks: how the SHA-256 of each image begins, 16 digits an image, one after the other.
    """

    def __init__(
        self,
        images: ImageSource,
        *,
        resolution: int,
        num_classes: int,
        skipped: list[dict[str, str]],
        digest: str,
        checks: str,
    ):
        self.images = images
        self.resolution = resolution
        self.num_classes = num_classes
        self.skipped = skipped
        self.digest = digest
        self.checks = checks

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
            images: the source.
            resolution: pixels.
            num_classes: classes that labels may name.
            max_unreadable: share of images that may be left out.
            every_class: a class without images is an error.

        Raises:
            InputError: a label out of range, too many unreadable images, or a class without images.
        """
        if isinstance(images, FolderImages) and images.labels[-1] + 1 != num_classes:
            raise InputError(
                f"{images.path} holds {images.labels[-1] + 1} class folders, expected {num_classes}; "
                "correct `images.num_classes` or the folder: labels are counted off the folders' names"
            )
        outside = np.flatnonzero((images.labels < 0) | (images.labels >= num_classes))
        if len(outside):
            raise InputError(
                f"{len(outside)} labels of {images.path} lie outside 0 to {num_classes - 1}, the first of them "
                f"{images.labels[outside[0]]} of image {images.keys[outside[0]]}; "
                "correct `images.num_classes` or the labels"
            )
        good, skipped, checks, sha = [], [], [], hashlib.sha256()
        chunks = [range(i, min(i + _CHUNK, len(images))) for i in range(0, len(images), _CHUNK)]
        threads = len(os.sched_getaffinity(0))
        checked = mapped(lambda chunk: [_check(images, i) for i in chunk], chunks, threads=threads, ahead=2 * threads)
        for chunk, results in zip(chunks, reported(checked, len(images), "read", size=_CHUNK), strict=True):
            for i, (sha256, reason) in zip(chunk, results, strict=True):
                if reason is None:
                    good.append(i)
                    checks.append(sha256[:_CHECK])
                    sha.update(f"{images.keys[i]}\0{images.labels[i]}\0{sha256}\0".encode())
                else:
                    skipped.append({"key": images.keys[i], "reason": reason})
        if len(skipped) > max_unreadable * len(images) or not good:
            named = "; ".join(f"{s['key']} ({s['reason']})" for s in skipped[:_NAMED])
            more = f"; and {len(skipped) - _NAMED} more" if len(skipped) > _NAMED else ""
            raise InputError(
                f"{len(skipped)} of {len(images)} images of {images.path} cannot be read: {named}{more}; repair or "
                f"remove them, or raise `images.max_unreadable` (now {max_unreadable:g}, a share) to go on without them"
            )
        index = cls(
            images.keep(np.array(good)),
            resolution=resolution,
            num_classes=num_classes,
            skipped=skipped,
            digest=sha.hexdigest(),
            checks="".join(checks),
        )
        empty = np.flatnonzero(index.class_counts == 0)
        if every_class and len(empty):
            named = ", ".join(map(str, empty[:_NAMED])) + (", ..." if len(empty) > _NAMED else "")
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
            locations = {name: np.array(column) for name, column in values["locations"].items()}
            images = _SOURCES[values["source"]](
                values["path"], values["files"], values["keys"], np.array(values["labels"]), locations
            )
            fields = {name: values[name] for name in ("resolution", "num_classes", "skipped", "digest", "checks")}
        except (KeyError, TypeError, AttributeError):
            raise InputError(f"{path} is no index of images; make it again with the stage index_images") from None
        return cls(images, **fields)

    def save(self, path: str | Path) -> None:
        """Writes the index as JSON, one field a line."""
        values = {
            "source": self.images.kind,
            "path": self.images.path,
            "resolution": self.resolution,
            "num_classes": self.num_classes,
            "count": len(self),
            "class_counts": self.class_counts.tolist(),
            "skipped": self.skipped,
            "digest": self.digest,
            "files": self.images.files,
            "labels": self.labels.tolist(),
            "keys": self.keys,
            "checks": self.checks,
            "locations": {name: column.tolist() for name, column in self.images.locations.items()},
        }
        lines = (f"{json.dumps(name)}: {json.dumps(value, separators=(',', ':'))}" for name, value in values.items())
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


def _check(images: ImageSource, i: int) -> tuple[str, str | None]:
    """SHA-256 of image `i`, and why it cannot be read, if so."""
    try:
        data = images.data(i)
        decode(data)
    except UNREADABLE as error:
        return "", str(error) or type(error).__name__
    return hashlib.sha256(data).hexdigest(), None
