"""A folder with one sub-folder per class."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from dpar.data.decoding import SUFFIXES
from dpar.data.sources.source import (
    ImageSource,
    LeftAlone,
    Stamp,
    described,
    enumerated,
    file_stamp,
)
from dpar.errors import InputError, shown
from dpar.files import is_hidden

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF")  # how images begin


class FolderImages(ImageSource):
    """A folder with one sub-folder per class; a label is the position of its sub-folder in sorted order.

    Folders may be nested below a class. What is hidden (`is_hidden`) is ignored, and so are files without the suffix of
    an image, which are counted. Links are followed; a folder that is reached again is not read twice.
    """

    kind = "folder"
    location_names = ()

    @classmethod
    def scan(cls, path: str) -> "ImageSource":
        """All images, by class and then by name.

        Raises:
            InputError: no class folders, images outside of them, or an unreadable folder.
        """
        tree = _Tree(path)
        keys, labels = [], []
        for label, name in enumerate(tree.classes):
            found = sorted(key for key, _ in tree.images(name))
            keys += found
            labels += [label] * len(found)
        return cls(
            path,
            [str(tree.root)],
            keys,
            np.array(labels, np.int64),
            {},
            classes=tree.classes,
            left_alone=tree.left_alone.summary(),
        )

    def expect_every_class(self) -> None:
        """Raises `InputError` if a class folder holds no images."""
        if empty := self.empty_classes():
            raise InputError(
                f"the class folder {shown(os.path.join(self.files[0], empty[0]))} holds no images "
                f"({', '.join(SUFFIXES)}); add some, or remove the folder"
                f"{described(self.left_alone, '; left alone: ')}"
            )

    def empty_classes(self) -> list[str]:
        """Names of the class folders that hold no images."""
        used = set(self.labels.tolist())
        return [str(name) for label, name in enumerate(self.classes or ()) if label not in used]

    @classmethod
    def stamps(cls, path: str) -> dict[str, Stamp]:
        """The image files as they are now, by key."""
        tree = _Tree(path)
        return dict(found for name in tree.classes for found in tree.images(name))

    def stamped(self) -> Sequence[str]:
        """The keys."""
        return self.keys

    def place(self, name: str) -> str:
        """The path of the image file."""
        return os.path.join(self.files[0], name)

    def data(self, i: int) -> bytes:
        """The file of image `i`."""
        return Path(self.files[0], self.keys[i]).read_bytes()


class _Tree:
    """The class folders below a path, and the counts of ignored files in them.

    Raises:
        InputError: there are none, or images lie outside of them.
    """

    def __init__(self, path: str):
        self.root = Path(path).expanduser()
        if not os.path.isdir(self.root):
            raise InputError(f"the image folder {path} does not exist; it must hold one sub-folder per class")
        self.left_alone = LeftAlone()
        self._reached = {folder_identity(self.root): ""}  # folder -> by which way
        entries = _entries(self.root)
        self.classes = [entry.name for entry in entries if is_folder(entry)]
        loose = [entry for entry in entries if not is_folder(entry)]
        if not self.classes:
            raise InputError(
                f"the image folder {path} holds no sub-folders; it must hold one per class, with images in it"
            )
        if images := [entry.name for entry in loose if entry.name.lower().endswith(SUFFIXES)]:
            raise InputError(
                f"{path} holds {len(images)} images next to its {len(self.classes)} folders: {enumerated(images)}; "
                "one folder per class holds the images of this class: move or remove those next to them"
            )
        for entry in loose:
            _leave(self.left_alone, entry, entry.name)

    def images(self, name: str) -> Iterator[tuple[str, Stamp]]:
        """Key and stamp of each image file in a class folder and below."""
        waiting = [name]
        while waiting:
            relative = waiting.pop()
            if not self._enter(relative):
                continue
            for entry in _entries(self.root / relative):
                key = f"{relative}/{entry.name}"
                if is_folder(entry):
                    waiting.append(key)
                elif entry.name.lower().endswith(SUFFIXES):
                    yield key, self._stamp(entry)
                else:
                    _leave(self.left_alone, entry, key)

    def _stamp(self, entry: os.DirEntry) -> Stamp:
        stamp = file_stamp(entry.path)
        if stamp.size >= 0 and not entry.is_file():
            raise InputError(f"{shown(entry.path)} is no file but a pipe, a socket or a device; remove it")
        return stamp

    def _enter(self, relative: str) -> bool:
        """Whether this folder was not reached before, by another way."""
        before = self._reached.setdefault(folder_identity(self.root / relative), relative)
        if before == relative:
            return True
        if before == "" or relative.startswith(f"{before}/"):
            self.left_alone.add("links to a folder above them", relative)
        elif before.partition("/")[0] == relative.partition("/")[0]:
            self.left_alone.add("links to a folder that is read already", relative)
        else:
            raise InputError(
                f"{shown(before)} and {shown(relative)} of {self.root} are one folder, so that its images would belong "
                "to two classes; remove one of the links"
            )
        return False


def _entries(folder: Path) -> list[os.DirEntry]:
    """The entries of a folder in order of their names, without what is hidden."""
    try:
        with os.scandir(folder) as found:
            return sorted((e for e in found if not is_hidden(e.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(
            f"the folder {shown(str(folder))} cannot be read ({error.strerror}); "
            "make it readable, or take it out of the images"
        ) from None


def folder_identity(folder: Path) -> tuple[int, int]:
    """Device and inode of a folder, by which links back to it are known."""
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder or a link to one; a link to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _leave(left_alone: LeftAlone, entry: os.DirEntry, key: str) -> None:
    """Counts a file that is no image by its suffix; one without a suffix that begins as an image does is named."""
    if suffix := os.path.splitext(entry.name)[1].lower():
        left_alone.add(suffix)
        return
    try:
        with open(entry.path if entry.is_file() else os.devnull, "rb") as file:
            image = file.read(8).startswith(_SIGNATURES)
    except OSError:
        image = False
    if image:
        left_alone.add("images without a suffix", key)
    else:
        left_alone.add("without a suffix")
