"""The images that a job draws: image i of a set of samples has its own seed and label, whichever job draws it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int
from torch import Tensor

from dpar.errors import InputError
from dpar.experiment.cells import shard_of
from dpar.sampling.noise import image_seed


@dataclass(frozen=True)
class Request:
    """Images to draw, in order.

    Attributes:
        images: their numbers in the set of samples.
        seeds: 64-bit numbers.
        prefix: tokens that each image begins with, on the device of the model; None for whole images.
    """

    images: Int[np.ndarray, " N"]
    labels: Int[np.ndarray, " N"]
    seeds: Int[np.ndarray, " N"]
    prefix: Int[Tensor, "N n"] | None = None

    @classmethod
    def of(cls, labels: Int[np.ndarray, " N"], seed: int, prefix: Int[Tensor, "N n"] | None = None) -> "Request":
        """The first N images of a set with that seed: an image of each of these labels."""
        images = np.arange(len(labels))
        return cls(images, labels, image_seeds(seed, images), prefix)

    @classmethod
    def shared(cls, classes: Sequence[int], count: int, seed: int) -> "Request":
        """So many whole images, shared evenly by the classes, those of a class one after the other."""
        return cls.of(np.array(classes)[np.sort(np.arange(count) % len(classes))], seed)

    def beginning(self, tokens: Int[Tensor, " n"] | None) -> "Request":
        """The same with each image beginning with these tokens."""
        return self if tokens is None else replace(self, prefix=tokens.expand(len(self), -1))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, part: slice) -> "Request":
        prefix = None if self.prefix is None else self.prefix[part]
        return Request(self.images[part], self.labels[part], self.seeds[part], prefix)


def image_seeds(seed: int, images: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """The seed of each image of a set of samples, by its number."""
    return np.array([image_seed(seed, int(image)) for image in images], dtype=np.int64)


def request(
    *,
    num_images: int,
    num_classes: int,
    labels: str,
    seed: int,
    batch_size: int,
    shard: int = 0,
    shards: int = 1,
    counts: Int[np.ndarray, "C"] | None = None,
) -> Request:
    """Shard `shard` of `shards` of a set of `num_images` samples: a run of consecutive images.

    Shards are made of whole batches, as long as each gets one: only the last batch of the set is short, and an image is
    drawn next to the same others whatever the number of shards.

    Args:
        labels: `balanced` (image i is of class i modulo the number of classes), `uniform` (drawn at random) or
            `training` (each class has its share of the training images).
        counts: training images of each class, for `training`.

    Raises:
        InputError: no such shard, a shard without images, or no counts of these classes.
    """
    if not 0 <= shard < shards:
        raise InputError(f"shard {shard} does not exist; there are {shards} shards, counted from 0")
    images = np.array(shard_of(num_images, batch_size, shard, shards), np.int64)
    if not len(images):
        raise InputError(f"shard {shard} of {shards} is empty: {num_images} images; lower sampling.shards")
    seeds = image_seeds(seed, images)
    if labels == "balanced":
        classes = images % num_classes
    elif labels == "training":
        if counts is None or len(counts) != num_classes or not counts.sum():
            raise InputError(
                f"labels as the training images have them need the number of images of each of {num_classes} classes, "
                f"found {'none' if counts is None else f'{len(counts)} classes of {counts.sum()} images'}; "
                "give --index index/train.json of this experiment"
            )
        classes = in_proportion(num_images, counts)[images]
    else:  # the remainder of a word that no other draw of the image uses
        classes = np.array([image_seed(int(word), -1) % num_classes for word in seeds])
    return Request(images, classes, seeds)


def in_proportion(num_images: int, counts: Int[np.ndarray, "C"]) -> Int[np.ndarray, " {num_images}"]:
    """The classes of images in which each has its share of the counts, to the nearest whole image, in turns.

    What the shares leave over goes to the largest remainders. Of equal counts the classes take turns in their order.
    """
    shares = counts * num_images / counts.sum()
    each = np.floor(shares).astype(np.int64)
    each[np.argsort(each - shares, kind="stable")[: num_images - each.sum()]] += 1
    classes = np.repeat(np.arange(len(counts)), each)
    turns = np.concatenate([(np.arange(n) + 0.5) / n for n in each if n])
    return classes[np.argsort(turns, kind="stable")]
