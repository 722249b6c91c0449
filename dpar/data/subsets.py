"""Images of a source that a split takes, by rules without a seed: held-out ones, and fewer of all classes alike."""

import hashlib

import numpy as np
from jaxtyping import Bool, Int

from dpar.data.sources import ImageSource


def held_out(images: ImageSource, share: float) -> Bool[np.ndarray, "N"]:
    """Which images are held out: of each class those whose names have the smallest SHA-256.

    The names are the keys of the source (in a folder: the path below it). The rule has no seed and asks nothing but
    names and labels, so that it holds out the same images everywhere. Of each class it takes the nearest whole number
    to `share` of them, one at least and never all; of a class of one image none.

    Args:
        images: all of them.
        share: of each class, between 0 and 1.
    """
    digests = [hashlib.sha256(key.encode(errors="surrogateescape")).digest() for key in images.keys]
    taken = np.zeros(len(images), bool)
    for label in np.unique(images.labels):
        of_class = np.flatnonzero(images.labels == label).tolist()
        of_class.sort(key=lambda i: (digests[i], images.keys[i]))
        taken[of_class[: min(max(1, round(share * len(of_class))), len(of_class) - 1)]] = True
    return taken


def first_of_classes(labels: Int[np.ndarray, " N"], count: int) -> Int[np.ndarray, " {count}"]:
    """`count` of the N images, the first of each class, then the second of each, by rising number."""
    by_class = np.argsort(labels, kind="stable")
    _, first = np.unique(labels[by_class], return_index=True)
    place = np.arange(len(labels)) - np.repeat(first, np.diff([*first, len(labels)]))
    return np.sort(by_class[np.lexsort((labels[by_class], place))[:count]])


def spread_over_classes(labels: Int[np.ndarray, " N"], count: int) -> Int[np.ndarray, " {count}"]:
    """`count` of the N images, evenly spaced in each class, by rising number.

    Evenly spaced in the order of the files alone, they would miss classes that take turns in it.
    """
    by_class = np.argsort(labels, kind="stable")
    return np.sort(by_class[np.linspace(0, len(labels) - 1, count).round().astype(int)])
