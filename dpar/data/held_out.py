"""Held-out images taken from the training images by a rule, without copying."""

import hashlib

import numpy as np
from jaxtyping import Bool

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
