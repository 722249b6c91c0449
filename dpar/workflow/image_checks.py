"""Looks at the images of an experiment before the first job: classes by name, images that both splits have, counts.

Folders are listed and files of equal size compared, as far as that is a matter of seconds; what is larger is looked at
when it is indexed, or by `dpar check --deep`.
"""

import glob
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import numpy as np

from dpar.data.class_names import numbered_as
from dpar.data.classes import listed_names
from dpar.data.images import ImageSource, open_images
from dpar.data.subsets import first_of_classes, held_out
from dpar.errors import InputError, shown
from dpar.experiment.settings import IMAGENET, Experiment
from dpar.files import is_hidden, matching, sha256_file
from dpar.workflow.problems import Problem
from dpar.workflow.user_paths import SPLITS, from_jobs

MOST_LISTED = 50_000  # files of a folder
MOST_COMPARED = 2 * 2**30  # bytes that are read to compare files of equal size
MOST_SHARED = 0.01  # share of held-out images; published sets have a few copies across splits
NEXT = "correct `images.val` (with `images.held_out`: remove the copies), or set `images.allow_shared: true` if meant"


class Looks:
    """The images of an experiment's splits, as far as a look at names and sizes shows them.

    Args:
        directory: where results/ lies, from which paths count.
    """

    def __init__(self, experiment: Experiment, directory: Path):
        self._settings = experiment.images
        names = self._settings.classes
        self._names = names if names in (None, IMAGENET) else from_jobs(names, directory)
        self._places = {split: from_jobs(self._settings.path(split) or "", directory) for split in SPLITS}

    @cached_property
    def _listed(self) -> Mapping[str, ImageSource | InputError | None]:
        """The splits of folders; the error where one cannot be listed, None where it is too large or not there."""
        images = self._settings
        found: dict[str, ImageSource | InputError | None] = {}
        if images.source != "folder":
            return dict.fromkeys(SPLITS)
        for split in SPLITS if images.held_out is None else ("train",):
            try:
                place = self._places[split]
                every = split == "train"
                found[split] = open_images("folder", place, every_class=every) if _is_short(place) else None
            except InputError as error:
                found[split] = error
        whole = found["train"]
        if images.held_out is not None:
            found["val"] = whole
            if isinstance(whole, ImageSource):
                taken = held_out(whole, images.held_out)
                found = {split: whole.keep(np.flatnonzero(taken == (split == "val"))) for split in SPLITS}
        return found

    def counts(self, split: str) -> list[int] | None:
        """Images of each class of a split, or in all if only so many are used; None where that is not known."""
        source, most = self._listed[split], getattr(self._settings, f"max_{split}")
        if not isinstance(source, ImageSource):
            return None if most is None or isinstance(source, InputError) else [most]
        counts = np.bincount(source.labels, minlength=self._settings.num_classes)
        if most is None or most >= counts.sum():
            return counts.tolist()
        if split == "val":
            return [most]
        taken = source.labels[first_of_classes(source.labels, most)]
        return np.bincount(taken, minlength=len(counts)).tolist()

    def problems(self) -> Iterator[Problem]:
        """Splits that are one or share images, and classes that do not fit."""
        images, places = self._settings, self._places
        if images.generated is not None:
            return
        if images.held_out is None and os.path.realpath(places["train"]) == os.path.realpath(places["val"]):
            yield Problem(
                "images.val", f"{images.val}, as images.train", "images that are not trained on", "name others"
            )
            return
        if images.source == "folder":
            yield from self._folders()
        yield from self._shared()

    def _folders(self) -> Iterator[Problem]:
        images = self._settings
        places = self._places if images.held_out is None else {"train": self._places["train"]}
        many = [(split, count) for split in places if (count := _classes(places[split])) > images.num_classes]
        for split, count in many:
            found = f"{images.num_classes}, but images.{split} has {count} folders, one per class"
            yield Problem("images.num_classes", found, f"at least {count}", "raise it, or remove folders")
        if many:
            return
        for split, source in self._listed.items():
            if isinstance(source, InputError) and _classes(self._places[split]):
                yield Problem(f"images.{split}", f"{source}", "one sub-folder of images per class", "mend the folder")
        train, val = self._listed["train"], self._listed["val"]
        if isinstance(train, ImageSource) and self._names and (self._names == IMAGENET or os.path.isfile(self._names)):
            try:
                listed_names(self._names, images.num_classes, train.classes)
            except InputError as error:
                yield Problem("images.classes", f"{error}", "names for the classes of images.train", "correct the file")
        if isinstance(train, ImageSource) and train.classes and len(train.classes) < images.num_classes:
            found = f"{images.num_classes}, but images.train has {len(train.classes)} folders, one per class"
            yield Problem("images.num_classes", found, f"{len(train.classes)}", "lower it, or add folders")
        if isinstance(train, ImageSource) and isinstance(val, ImageSource):
            try:
                numbered_as(val, train.classes)
            except InputError as error:
                yield Problem("images.val", f"{error}", "classes of images.train, by name", "rename or remove them")

    def _shared(self) -> Iterator[Problem]:
        """Held-out images, or files of images, that are training images too, byte for byte."""
        train, val = (self._files(split) for split in SPLITS)
        if not train or not val or self._settings.allow_shared:
            return
        same = same_files(train, val)
        if same is None or len(same) <= MOST_SHARED * len(val):
            return
        what = "held-out images" if self._settings.source == "folder" else "files of held-out images"
        pairs = ", ".join(f"{shown(mine)} = {shown(other)}" for mine, other in list(same.items())[:3])
        found = f"{len(same)} of {len(val)} {what} that are training images too, byte for byte: {pairs}"
        yield Problem("images.val", found + ", ..." * (len(same) > 3), "images that are not trained on", NEXT)

    def _files(self, split: str) -> dict[str, str]:
        """Key -> path of each image of a folder, or of each file that holds images."""
        if self._settings.source == "folder":
            source = self._listed[split]
            return {key: source.place(key) for key in source.keys} if isinstance(source, ImageSource) else {}
        if self._settings.held_out is not None:
            return {}
        return {path: path for path in matching(self._places[split]) if os.path.isfile(path)}


def same_files(known: Mapping[str, str], others: Mapping[str, str]) -> dict[str, str] | None:
    """Of each of `others` that has the bytes of a known file its name and that one's; None if too much had to be read.

    Both are name -> path.
    """
    sizes = defaultdict(list)
    for name, path in known.items():
        sizes[_size(path)].append(name)
    alike = {name: path for name, path in others.items() if _size(path) in sizes}
    reading = {known[name] for path in alike.values() for name in sizes[_size(path)]} | {*alike.values()}
    if sum(map(_size, reading)) > MOST_COMPARED:
        return None
    digests = {_digest(known[name]): name for path in alike.values() for name in sizes[_size(path)]}
    return {name: digests[digest] for name, path in alike.items() if (digest := _digest(path)) in digests and digest}


def _classes(place: str) -> int:
    """Folders with something in them."""
    with suppress(OSError), os.scandir(place) as entries:
        return sum(not is_hidden(e.name) and e.is_dir() and bool(os.listdir(e)) for e in entries)
    return 0


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def _digest(path: str) -> str:
    try:
        return sha256_file(path)
    except OSError:
        return ""


def _is_short(place: str) -> bool:
    """Whether the files of a folder's classes can be listed in a few seconds."""
    listed = 0
    for folder in glob.glob(f"{glob.escape(place)}/*/"):
        with suppress(OSError):
            listed += len(os.listdir(folder))
        if listed > MOST_LISTED:
            return False
    return os.path.isdir(place)
