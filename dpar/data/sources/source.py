"""Common part of all sources of images: names, labels, class names, and how one image is read."""

import hashlib
import os
import re
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from PIL import Image

from dpar.data.decoding import UNREADABLE, decode
from dpar.errors import InputError, shown
from dpar.files import matching

ClassNames = Sequence[str | None]  # by label; null = not known
_NAMED = 10  # things that a message names
_INT32 = np.iinfo(np.int32)
_PART = re.compile(r"(.*?)([0-9]{1,6})-of-([0-9]{1,6})(-[0-9a-f]{16}(?![0-9a-f]))?(.*)", re.DOTALL)


class Stamp(NamedTuple):
    """Size in bytes and modification time in seconds since 1970, by which a replaced file is noticed."""

    size: int
    changed: float


class LeftAlone:
    """Counts of ignored files by kind, with the first names of some kinds."""

    def __init__(self):
        self._counts: Counter[str] = Counter()
        self._names: dict[str, list[str]] = {}

    def add(self, kind: str, name: str | None = None) -> None:
        """One more of this kind; a kind whose members have names is told with the first of them."""
        self._counts[kind] += 1
        if name is not None and self._counts[kind] <= _NAMED:
            self._names.setdefault(kind, []).append(shown(name))

    def summary(self) -> dict[str, int]:
        """Kind, and names in brackets -> how many, the most first."""
        named = {kind: f" ({', '.join(names)})" for kind, names in self._names.items()}
        most = self._counts.most_common()
        counts = {shown(kind) + named.get(kind, ""): count for kind, count in most[: 2 * _NAMED]}
        rest = sum(count for _, count in most[2 * _NAMED :])
        return counts | ({"of other kinds": rest} if rest else {})


class ImageSource(ABC):
    """Images with keys and labels, read by number.

    Args:
        path: folder, file or glob, as the user wrote it.
        files: what the locations count.
        keys: names, one per image.
        labels: classes.
        locations: arrays with the position of each image; the names are those of `location_names`.
        classes: name of each label, where the source has names.
        left_alone: kind of ignored files, in words -> their number.

    Raises:
        InputError: a label that no class can have.
    """

    kind: str
    holder: str  # of the images, in words
    location_names: tuple[str, ...]

    def __init__(
        self,
        path: str,
        files: Sequence[str],
        keys: Sequence[str],
        labels: Int[np.ndarray, "N"],
        locations: Mapping[str, Int[np.ndarray, "N"]],
        *,
        classes: ClassNames | None = None,
        left_alone: Mapping[str, int] | None = None,
    ):
        self.path = path
        self.files = list(files)
        self.keys = list(keys)
        labels = np.asarray(labels)
        far = np.flatnonzero((labels < _INT32.min) | (labels > _INT32.max))
        if len(far):
            raise InputError(
                f"label out of range: {labels[far[0]]} of image {shown(self.keys[far[0]])} of {path}; "
                "labels count the classes from 0"
            )
        self.labels = labels.astype(np.int32)
        self.locations = {name: np.asarray(locations[name], np.int64) for name in self.location_names}
        self.classes = None if classes is None else list(classes)
        self.left_alone = dict(left_alone or {})
        self.listed = len(self.stamped())  # before some are left out

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    @abstractmethod
    def scan(cls, path: str) -> "ImageSource":
        """All images of the source, in a fixed order."""

    @classmethod
    def stamps(cls, path: str) -> dict[str, Stamp]:
        """The files that hold the images, as they are now, by name."""
        return {file: file_stamp(file) for file in matching_files(path, cls.holder)}

    def stamped(self) -> Sequence[str]:
        """The names by which `stamps` knows the files of these images."""
        return self.files

    def place(self, name: str) -> str:
        """The path of a file that `stamps` knows by this name."""
        return name

    @abstractmethod
    def data(self, i: int) -> bytes:
        """The file of image `i`."""

    def read(self, i: int, check: str = "") -> Image.Image:
        """Image `i` as 8-bit RGB.

        Args:
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
                f"image {shown(self.keys[i])} of {self.path} cannot be read ({error}); "
                "repair or remove it, and index again"
            ) from error

    def keep(self, numbers: Int[np.ndarray, "M"]) -> "ImageSource":
        """The source with these images only."""
        kept = type(self)(
            self.path,
            self.files,
            [self.keys[i] for i in numbers],
            self.labels[numbers],
            {name: column[numbers] for name, column in self.locations.items()},
            classes=self.classes,
            left_alone=self.left_alone,
        )
        kept.listed = self.listed
        return kept

    def numbered(self, labels: Int[np.ndarray, "N"], classes: ClassNames) -> "ImageSource":
        """The source with other numbers for its classes."""
        other = self.keep(np.arange(len(self)))
        other.labels, other.classes = labels.astype(np.int32), list(classes)
        return other


def matching_files(path: str, what: str) -> list[str]:
    """The files that `path` names, sorted: the one of this very name, or those that fit it as a pattern.

    Raises:
        InputError: there is none, or a link among them leads nowhere.
    """
    found = matching(path)
    files = [file for file in found if os.path.isfile(file)]
    for file in found:
        if os.path.islink(file) and not os.path.exists(file):
            raise InputError(f"{shown(file)} is a link that leads nowhere; mend or remove it")
    if not files:
        folder = f"{path} is a folder, not a {what}" if found else f"no {what} matches {path}"
        raise InputError(f"{folder}; give a file, or a pattern such as folder/train-*")
    return files


def expect_every_part(path: str, files: Sequence[str], listed: Sequence[str] = ()) -> None:
    """Makes sure that no part of a data set is missing among `files`, such as one whose download failed.

    Parts are missed where the pattern asks for them: `train-*` does for all, `train-0000[0-2]-of-*` for three.

    Args:
        path: file or pattern that the user gave; one file is taken alone.
        files: that it matches.
        listed: files that a list of the data set's parts names.

    Raises:
        InputError: some are missing, by their own numbers (`train-00000-of-00294.parquet`) or by the list.
    """
    path = os.path.expanduser(path)
    if os.path.lexists(path):
        return
    wanted = {*_lost_parts(files), *listed} - {*files}
    missing = sorted(file for file in wanted if fnmatchcase(os.path.basename(file), os.path.basename(path)))
    if missing:
        raise InputError(
            f"{path} matches {len(files)} files, and {len(missing)} more that belong to them are missing: "
            f"{enumerated([os.path.basename(file) for file in missing], 3)}; fetch them, or give a pattern of those "
            "that you mean, such as folder/train-0000[0-2]-of-*"
        )


def _lost_parts(files: Sequence[str]) -> Iterator[str]:
    """The missing files of the series called `BEFORE<number>-of-<count>AFTER`, counted from 0 or 1.

    Older data sets have a digest of its own in the name of each part: `train-00000-of-00002-63a1f2c0b4d8c1e0.parquet`.
    """
    series: dict[tuple[str, str, str, str, str], dict[int, int]] = defaultdict(dict)
    for file in files:
        folder, name = os.path.split(file)
        if part := _PART.fullmatch(name):
            before, number, count, digest, after = part.groups()
            series[folder, before, count, "-*" if digest else "", after][int(number)] = len(number)
    for (folder, before, count, digest, after), digits in series.items():
        first, width = 0 if 0 in digits or int(count) not in digits else 1, min(digits.values())
        for number in {*range(first, first + int(count))} - digits.keys():
            yield os.path.join(folder, f"{before}{number:0{width}d}-of-{count}{digest}{after}")


def file_stamp(file: str) -> Stamp:
    """Size and date of a file; -1 bytes where it is not there."""
    try:
        found = os.stat(file)
    except OSError:
        return Stamp(-1, 0.0)
    return Stamp(found.st_size, found.st_mtime)


def distinct_keys(keys: Sequence[str], numbers: Sequence[int], files: Sequence[str]) -> list[str]:
    """The keys, each with its file's name before it if any stands in several files.

    Args:
        numbers: which of the files each stands in.

    Raises:
        InputError: a key stands twice in one file.
    """
    if len(set(keys)) == len(keys):
        return list(keys)
    (key, number), times = Counter(zip(keys, numbers, strict=True)).most_common(1)[0]
    if times > 1:
        raise InputError(
            f"key {shown(key)} stands {times} times in {shown(files[number])}, expected one image a key; "
            "rename or remove the others"
        )
    names = [os.path.basename(file) for file in files]
    if len(set(names)) < len(names):
        names = list(files)
    return [f"{names[number]}:{key}" for key, number in zip(keys, numbers, strict=True)]


def merge_names(known: dict[int, str], found: Mapping[int, str], file: str) -> None:
    """Adds the names that `file` gives its labels to `known`.

    Raises:
        InputError: a label has another name already.
    """
    for label, name in found.items():
        if known.setdefault(label, name) != name:
            raise InputError(
                f"{file} calls label {label} {shown(name)}, which is {shown(known[label])} elsewhere in this source; "
                "one label must be one class: correct the labels or their names"
            )


def expect_named(file: str, labels: Int[np.ndarray, "N"], listed: Mapping[int, str], known: Mapping[int, str]) -> None:
    """Makes sure that a list of class names is long enough for the labels that it is for.

    Args:
        file: that holds the list.
        labels: negative ones say that there is no class.
        listed: label -> name by the list; empty where there is none.
        known: the same from elsewhere.

    Raises:
        InputError: some labels lie beyond it, and have no name from elsewhere.
    """
    beyond = labels[(labels >= len(listed)) & ~np.isin(labels, list(known))]
    if listed and len(beyond):
        raise InputError(
            f"{file} names the classes 0 to {len(listed) - 1}, and {len(beyond)} labels, {beyond.min()} to "
            f"{beyond.max()}, lie beyond: correct the labels, or name all classes"
        )


def by_label(names: Mapping[int, str]) -> ClassNames | None:
    """The names as a list, with null for labels between that have none; null if there are no names."""
    return [names.get(label) for label in range(max(names) + 1)] if names else None


def enumerated(names: Sequence[str], most: int = _NAMED) -> str:
    """The first names, fit to be printed, and how many more there are."""
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(map(shown, names[:most])) + more


def described(left_alone: Mapping[str, int], before: str) -> str:
    """Ignored files in words, after `before`; empty if there are none."""
    listed = ", ".join(f"{count} {what}" for what, count in left_alone.items())
    return before + listed if listed else ""
