"""WebDataset tars of images."""

import json
import operator
import os
import re
import sys
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from dpar.data.decoding import SUFFIXES
from dpar.data.sources.source import (
    ImageSource,
    LeftAlone,
    by_label,
    distinct_keys,
    expect_every_part,
    expect_named,
    matching_files,
    merge_names,
)
from dpar.errors import InputError, shown
from dpar.files import lies_hidden, with_each_key_once

_LABEL = re.compile(rb"\s*[+-]?[0-9]{1,18}\s*")
_BLOCK = tarfile.BLOCKSIZE
_LARGEST_RECORD = 2**20  # bytes
_JSON = 2**16  # bytes of the largest `.json` member that is looked into
INFO = "_info.json"


class TarImages(ImageSource):
    """WebDataset tars: for each key one image (`.jpg`, `.png`, ...) and one `.cls` with its label as text.

    A key is a member's name up to its last dot, if an image and a `.cls` share that, else up to the first dot after the
    last slash, as WebDataset has it. `classes.json` next to a tar names the classes: a list by label; so do `.json`
    members of samples with a text `class_name`. The place of each image in its tar is listed once; after that, images
    are read in any order.
    """

    kind = "webdataset"
    holder = "tar"
    location_names = ("file", "offset", "size")

    @classmethod
    def scan(cls, path: str) -> "ImageSource":
        """All samples, tar by tar in the order of their names.

        Raises:
            InputError: a tar is damaged or cut off, or a sample lacks an image or a label, or has two of them; or tars
                or samples are missing, by their numbers or by `_info.json` next to them.
        """
        files = matching_files(path, cls.holder)
        keys: list[str] = []
        labels: list[int] = []
        locations = {name: [] for name in cls.location_names}
        left_alone, names = LeftAlone(), {}
        lists = {folder: _listed_names(folder) for folder in sorted({os.path.dirname(file) for file in files})}
        splits = [split for folder in lists for split in stated_splits(folder)]
        begun = [split for split in splits if split.keys() & {*files}]  # of the others nothing was fetched to here
        samples = {file: count for split in splits for file, count in split.items()}
        expect_every_part(path, files, [file for split in begun for file in split])
        for number, file in enumerate(files):
            members, before = _Members.of(file), len(keys)
            called = lists[os.path.dirname(file)].called  # next to WordNet ids, which are the names that count
            own_names = {label: name for label, name in members.class_names().items() if called.get(label) != name}
            merge_names(names, own_names, file)
            for key, image, label in members.samples(left_alone):
                keys.append(key)
                labels.append(label)
                for name, value in zip(cls.location_names, (number, image.offset, image.size), strict=True):
                    locations[name].append(value)
            found = len(keys) - before
            if samples.get(file) not in (None, found):
                raise InputError(
                    f"{file} holds {found} samples, expected {samples[file]}, as {INFO} next to it says; fetch it "
                    f"again, or correct {INFO}"
                )
        for folder, listed in lists.items():
            own = [
                label for label, n in zip(labels, locations["file"], strict=True) if os.path.dirname(files[n]) == folder
            ]
            expect_named(listed.file, np.array(own, np.int64), listed.names, names)
            merge_names(names, listed.names, listed.file)
        columns = {name: np.array(values, np.int64) for name, values in locations.items()}
        keys = distinct_keys(keys, locations["file"], files)
        return cls(
            path,
            files,
            keys,
            np.array(labels, np.int64),
            columns,
            classes=by_label(names),
            left_alone=left_alone.summary(),
        )

    def data(self, i: int) -> bytes:
        """The file of image `i`."""
        file, offset, size = (int(self.locations[name][i]) for name in self.location_names)
        with open(self.files[file], "rb", buffering=0) as tar:
            return os.pread(tar.fileno(), size, offset)


@dataclass
class _Image:
    """Where the file of an image lies in its tar."""

    name: str
    offset: int
    size: int


@dataclass
class _Members:
    """The images, labels and other members of a tar, all but the last by their names without the last suffix."""

    file: str
    images: dict[str, _Image] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    called: dict[str, str] = field(default_factory=dict)  # the names of classes in `.json`
    others: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, file: str) -> "_Members":
        """All members of a tar, whose end must be there."""
        found = cls(file)
        try:
            with tarfile.open(file, "r:") as tar:
                last = None
                for member in tar:
                    found._add(tar, member)
                    tar.members = []  # type: ignore  # every header would be kept
                    last = member
                _check_last(file, last)
                _check_end(file, tar.offset)
        except InputError:
            raise
        except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
            raise InputError(
                f"{file} is not a whole, uncompressed tar ({error}); fetch it again, or decompress it: "
                "images are read from the middle of it"
            ) from error
        return found

    def _add(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        stem, suffix = os.path.splitext(member.name)
        image, label = suffix.lower() in SUFFIXES, suffix.lower() == ".cls"
        hidden = lies_hidden(member.name) or not os.path.basename(member.name)
        if hidden or member.isdir() or not (image or label):
            named = None if hidden or suffix.lower() != ".json" else _class_name(tar, member)
            if named is not None:
                self.called[stem] = named
            elif not member.isdir():
                self.others.append(member.name)
            return
        if not member.isfile() or member.issparse():
            raise InputError(
                f"{shown(member.name)} of {self.file} is a link, a device or a sparse file; "
                "make the tar with whole files"
            )
        if stem in (self.images if image else self.labels):
            raise InputError(
                f"sample {shown(stem)} of {self.file} has two {'images' if image else 'labels (.cls)'}, the second of "
                f"them {shown(member.name)}; keep one"
            )
        if image:
            self.images[stem] = _Image(member.name, member.offset_data, member.size)
        else:
            self.labels[stem] = self._label(tar, member)

    def _label(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> int:
        reader = tar.extractfile(member)
        text = reader.read(64) if reader else b""
        if member.size > 64 or not _LABEL.fullmatch(text):
            raise InputError(f"{shown(member.name)} of {self.file} holds {text[:20]!r}, expected a label")
        label = int(text)
        if not -(2**31) <= label < 2**31:
            raise InputError(
                f"label out of range: {label} in {shown(member.name)} of {self.file}; labels count the classes from 0"
            )
        return label

    def class_names(self) -> dict[int, str]:
        """Label -> name by the `.json` members.

        Raises:
            InputError: samples of one label have different names.
        """
        names: dict[int, str] = {}
        for stem, name in self.called.items():
            label = self.labels.get(stem, self.labels.get(_first_dot(stem)))
            if label is not None:
                merge_names(names, {label: name}, self.file)
        return names

    def _near(self, stem: str) -> str:
        """The member that may be meant as the label of an image."""
        meant = next((name for name in self.others if name.lower().startswith(f"{stem}.cls".lower())), None)
        return f"; there is {shown(meant)}, which is none" if meant else ""

    def samples(self, left_alone: LeftAlone) -> Iterator[tuple[str, _Image, int]]:
        """Key, image and label of each sample in the order of the images; counts the other members.

        Raises:
            InputError: an image or a label without the other, or two images that share a label.
        """
        whole = self.images.keys() & self.labels.keys()
        shorter: dict[str, _Image] = {}  # by the key up to the first dot
        for stem, image in self.images.items():
            key = _first_dot(stem)
            if stem in whole:
                yield stem, image, self.labels[stem]
            elif key in whole:  # `a.mask.png` next to `a.jpg` and `a.cls`
                left_alone.add(_rest(image.name))
            elif key not in self.labels:
                raise InputError(
                    f"sample {shown(stem)} of {self.file} has no label (.cls{self._near(stem)}); add or remove it"
                )
            elif key in shorter:
                raise InputError(
                    f"sample {shown(key)} of {self.file} has two images, {shown(shorter[key].name)} and "
                    f"{shown(image.name)}; keep one"
                )
            else:
                shorter[key] = image
                yield key, image, self.labels[key]
        for stem in sorted(self.labels.keys() - whole - shorter.keys()):
            if _first_dot(stem) not in {*whole, *shorter}:
                raise InputError(f"sample {shown(stem)} of {self.file} has no image; add or remove it")
            left_alone.add(_rest(f"{stem}.cls"))
        for name in self.others:
            suffix = os.path.splitext(name)[1].lower() or "without a suffix"
            left_alone.add("hidden" if lies_hidden(name) else suffix)


def _class_name(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str | None:
    """The `class_name` in a `.json` member, if it has one."""
    reader = tar.extractfile(member) if member.isfile() and member.size <= _JSON else None
    try:
        name = json.loads(reader.read())["class_name"] if reader else None
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return sys.intern(name) if isinstance(name, str) else None


def _first_dot(stem: str) -> str:
    """The part of a member's name up to the first dot after the last slash."""
    folder, slash, name = stem.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _rest(name: str) -> str:
    """The part of a member's name after the first dot: its role in the sample."""
    return "." + os.path.basename(name).partition(".")[2].lower()


def _check_last(file: str, member: tarfile.TarInfo | None) -> None:
    """Raises `TarError` if the last image or label ends in a block of zeros: the end of the tar was never written.

    Files of which a part is missing are zeros from a multiple of 512 bytes on; neither images nor labels end in them.
    """
    if member is None or not member.isfile() or not member.size:
        return
    if os.path.splitext(member.name)[1].lower() not in (*SUFFIXES, ".cls"):
        return
    rest = (member.size - 1) % _BLOCK + 1  # in its last block
    with open(file, "rb") as tar:
        tar.seek(member.offset_data + member.size - rest)
        if not any(tar.read(rest)):
            raise tarfile.ReadError(f"its last member, {shown(member.name)}, ends in zeros: the rest was never written")


def _check_end(file: str, offset: int) -> None:
    """Raises `TarError` unless the tar ends at `offset` as tars do: two blocks of zeros, and more to fill a record."""
    with open(file, "rb") as tar:
        size = os.fstat(tar.fileno()).st_size
        zeros = size - offset
        tar.seek(offset)
        if any(tar.read(_BLOCK)):
            raise tarfile.ReadError(f"no member begins at byte {offset}, where one is expected")
        if zeros < 2 * _BLOCK:
            raise tarfile.ReadError(
                f"it is cut off at byte {offset + zeros}: the two blocks of zeros that end a tar are missing"
            )
        while rest := tar.read(2**20):
            if rest.count(0) < len(rest):
                raise tarfile.ReadError("something follows its end, as in tars that were put together; unpack them")
        if size % _BLOCK:
            raise tarfile.ReadError(f"it is cut off at byte {size}, in the middle of a block of {_BLOCK} bytes")
        if not _fills_a_record(size, zeros):
            raise tarfile.ReadError(
                f"from byte {offset} on it is {zeros} zeros, as in a file of which only the beginning was written; a "
                f"tar in records of {tarfile.RECORDSIZE} bytes ends with less than {2 * _BLOCK + tarfile.RECORDSIZE}: "
                "if it is whole, write it with `tar -b 20`"
            )


def _fills_a_record(size: int, zeros: int) -> bool:
    """Whether zeros at the end of a tar are no more than fill a record.

    Records have 10,240 bytes unless `tar -b` or another program had it otherwise, which is believed where they do not
    divide the tar and another size does.
    """
    filling = zeros - 2 * _BLOCK
    if filling < tarfile.RECORDSIZE:
        return True
    larger = range((filling // _BLOCK + 1) * _BLOCK, _LARGEST_RECORD + 1, _BLOCK)
    return size % tarfile.RECORDSIZE != 0 and any(size % record == 0 for record in larger)


def stated_splits(folder: str) -> list[dict[str, int]]:
    """Tar -> its samples, for each split that `_info.json` lists as published data sets do; empty without it, or if it
    has another form.

    That is `splits`, each of which has `filenames` and as many `shard_lengths`. Folders in the names are those of the
    published set; where two tars differ by them alone, nothing is stated.
    """
    try:
        with open(os.path.join(folder, INFO), encoding="utf-8") as file:
            splits = json.load(file)["splits"].values()
        stated = [[*zip(s["filenames"], s["shard_lengths"], strict=True)] for s in splits]
        samples = [
            {os.path.join(folder, os.path.basename(name)): operator.index(count) for name, count in split}
            for split in stated
        ]
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return []
    names = [name for split in stated for name, _ in split]
    return samples if len({*chain(*samples)}) == len(names) and not any("{" in name for name in names) else []


class _Listed(NamedTuple):
    """Label -> name by a file, and label -> the `name` of those that are known by their WordNet ids."""

    file: str
    names: Mapping[int, str]
    called: Mapping[int, str]


def _listed_names(folder: str) -> _Listed:
    """The names in `classes.json`: a list of names, or of objects with `wnid` or `name`; empty without it."""
    path = os.path.join(folder, "classes.json")
    if not os.path.exists(path):
        return _Listed(path, {}, {})
    try:
        with open(path, encoding="utf-8") as file:
            listed = json.load(file, object_pairs_hook=with_each_key_once)
        if not isinstance(listed, list):
            raise TypeError(listed)
        named = {label: value.get("name") for label, value in enumerate(listed) if isinstance(value, dict)}
        called = {label: name for label, name in named.items() if isinstance(name, str)}
        return _Listed(path, {label: _name(value) for label, value in enumerate(listed)}, called)
    except (OSError, ValueError, TypeError, KeyError):
        raise InputError(
            f"{path} is no list of class names by label, as JSON; correct it, or take it away from the tars: "
            "held-out classes are then compared by their numbers"
        ) from None


def _name(value: Any) -> str:
    name = value.get("wnid", value.get("name")) if isinstance(value, dict) else value
    if not isinstance(name, str):
        raise TypeError(name)
    return name
