"""Passes over a set of images: resizing, batches, features."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from dpar import __version__
from dpar.data.class_names import labels_as
from dpar.data.workers import cores, mapped, reported
from dpar.errors import InputError
from dpar.evaluation.classifier import training_half
from dpar.evaluation.features import BATCH, Extractor, Features, extract, read_gaussian, stacked
from dpar.evaluation.frechet import Gaussian
from dpar.evaluation.image_sets import RESIZE, ImageSet, Indexed, Profile
from dpar.evaluation.inception import SIDE

TELLING = 100  # images whose mean features say of which network stored ones are


def resize_clean(pixels: UInt8[Tensor, "3 H W"], side: int = SIDE) -> Float[Tensor, "3 side side"]:
    """clean-fid's resize (Parmar et al. 2022): Pillow's bicubic, antialiased, each channel as floats, in [0, 255]."""
    channels = [Image.fromarray(channel.numpy().astype(np.float32)) for channel in pixels]
    resized = [np.asarray(channel.resize((side, side), Image.Resampling.BICUBIC)) for channel in channels]
    return torch.from_numpy(np.stack(resized).clip(0, 255))


def batches(
    images: ImageSet, rows: Int[np.ndarray, "n"], *, side: int | None, profile: Profile = "adm"
) -> Iterator[Tensor]:
    """These images as the network takes them, `BATCH` at a time: bytes, or for `clean` floats of 299 pixels.

    Raises:
        InputError: an image is not square or not of the others' size, which `clean` alone allows.
    """
    found = images.read(rows, side)
    if profile == "clean":
        found = mapped(resize_clean, found, threads=cores(), ahead=2 * BATCH)

    def alike() -> Iterator[Tensor]:
        expected = None
        for number, image in enumerate(found):
            expected = expected or (image.shape[-1],) * 2
            if image.shape[1:] != expected:
                height, width = image.shape[1:]
                raise InputError(
                    f"image {number} of {images.source} has {width} x {height} pixels, expected squares of one size "
                    f"(here {expected[0]}); give --resolution N to cut them so, or --profile clean"
                )
            yield image

    yield from stacked(alike())


@dataclass
class Pass:
    """Images on their way through a network, once it is sure that they fit each other.

    Args:
        side: pixels of the centre square that is cut first; null = images as they are (of an index, its own).
        rows: which images, in rising order; null = all.

    Raises:
        InputError: the images do not fit the network, or hold statistics of the other profile.
    """

    images: ImageSet
    extractor: Extractor
    side: int | None = None
    profile: Profile = "adm"
    rows: Int[np.ndarray, "n"] | None = None

    def __post_init__(self):
        images, extractor = self.images, self.extractor
        if self.profile == "clean" and extractor.name != "inception":
            raise InputError(f"--profile clean is a way to feed Inception; {extractor.name} takes images as they are")
        if self.profile == "clean" and "mu" in images.moments:
            raise InputError(
                f"{images.source} holds statistics by ADM's resize, which --profile clean must not be compared with; "
                "give the images of the reference instead"
            )
        self.chosen = np.arange(len(images)) if self.rows is None else self.rows
        if not len(self.chosen):
            raise InputError(f"{images.source} holds no images to measure; check the path")
        self.side = self.side or extractor.resolution or (images.side if isinstance(images, Indexed) else None)
        if extractor.resolution not in (None, self.side):
            raise InputError(
                f"the {extractor.name} was trained on images of {extractor.resolution} pixels, these are to be "
                f"measured at {self.side}; run train_classifier again, or measure at its own size"
            )
        self._seen: int | None = None

    def __len__(self) -> int:
        return len(self.chosen)

    def batches(self, which: Int[np.ndarray, "m"] | slice = slice(None)) -> Iterator[Tensor]:
        """The images as the network takes them; of the chosen ones, those of number `which`, in rising order.

        Raises:
            InputError: an image cannot be read, or has another size.
        """
        for batch in batches(self.images, self.chosen[which], side=self.side, profile=self.profile):
            self._seen = batch.shape[-1]
            yield batch

    def features(self, outputs: Sequence[Float[np.ndarray, "n _"]]) -> Features:
        """Features of the chosen images, with the statistics that their file may hold."""
        images, extractor = self.images, self.extractor
        features, logits, spatial = outputs[0], *(*outputs[1:], None, None)[:2]
        labels, conditions = _classified(images, extractor, images.conditions())
        return Features(
            features,
            logits,
            None if labels is None else labels[self.chosen],
            spatial,
            _statistics(images, extractor, {"features": features, "spatial": spatial}),
            {
                "extractor": extractor.name,
                "extractor_sha256": extractor.sha256,
                **({"dimensions": extractor.dimensions} if extractor.dimensions else {}),
                "extractor_accuracy": extractor.provenance.get("accuracy"),
                "profile": self.profile,
                "resize": RESIZE[self.profile] if extractor.name == "inception" else "none",
                "resolution": self.side or images.side or (self._seen if self.profile == "adm" else None),
                "dtype": "float32",
                "versions": {"dpar": __version__, "torch": torch.__version__, "numpy": np.__version__},
                "source": images.source,
                **conditions,
                "count": len(features),
            },
        )


def describe(
    images: ImageSet,
    extractor: Extractor,
    *,
    side: int | None = None,
    profile: Profile = "adm",
    rows: Int[np.ndarray, "n"] | None = None,
) -> Features:
    """Features of the images, with the statistics that their file may hold.

    Args:
        side: as of `Pass`, like `rows`.

    Raises:
        InputError: the images cannot be read, do not fit the network, or hold statistics of the other profile.
    """
    whole = Pass(images, extractor, side, profile, rows)
    return whole.features(extract(extractor, reported(whole.batches(), len(whole), "described", size=BATCH)))


def _classified(
    images: ImageSet, extractor: Extractor, conditions: dict[str, Any]
) -> tuple[Int[np.ndarray, "N"] | None, dict[str, Any]]:
    """The images' labels as the classifier counts its classes, and the conditions of the set with what that says.

    Classes are matched by name where both have names. Folders that are called by numbers are counted instead.
    """
    known, names, labels = extractor.provenance.get("classes"), images.classes, images.labels
    if extractor.name != "classifier" or names is None or labels is None:
        return labels, conditions
    numbers = all(str(name).isdecimal() for name in names)
    if known is None and "class_folders" in conditions and not numbers:
        return labels, conditions | {"class_order": f"{names[0]} is class 0"}
    if known is None or (numbers and not all(str(name).isdecimal() for name in known)):
        return labels, conditions
    matched = {name: value for name, value in conditions.items() if name not in ("class_folders", "class_order")}
    try:
        return labels_as(labels, names, images.source, known), matched
    except InputError as error:
        return labels, matched | {"other_classes": str(error)}


def _statistics(
    images: ImageSet, extractor: Extractor, found: Mapping[str, Float[np.ndarray, "n _"] | None]
) -> dict[str, Gaussian]:
    """The statistics that the file of these images holds, where they are of the network in use.

    Args:
        found: the network's own features of images in that file.
    """
    if extractor.name != "inception":  # such statistics are Inception's by definition
        if images.moments:
            print(
                f"warning: {images.source} holds statistics ({', '.join(sorted(images.moments))}) of Inception; "
                f"the feature network is {extractor.name}: they are left aside",
                file=sys.stderr,
            )
        return {}
    statistics, first = {}, slice(extractor.dimensions)
    for name, mean, covariance in (("features", "mu", "sigma"), ("spatial", "mu_s", "sigma_s")):
        if mean in images.moments or covariance in images.moments:
            whole = read_gaussian(images.source, images.moments, mean, covariance)
            statistics[name] = replace(whole, mean=whole.mean[first], covariance=whole.covariance[first, first])
            _expect_same_network(images.source, mean, statistics[name].mean.numpy(), found[name])
    return statistics


def _expect_same_network(
    source: str, name: str, mean: Float[np.ndarray, "D"], features: Float[np.ndarray, "n D"] | None
) -> None:
    """Refuses a stored mean of another network's features, which hang together with these no more than by chance.

    Images that are no random part of those behind the mean, such as those of one class, still agree in which features
    are large. Of few images, or of other dimensions, which have an error of their own, nothing is said here.
    """
    if features is None or len(features) < TELLING or features.shape[1:] != mean.shape:
        return
    with np.errstate(invalid="ignore", divide="ignore"):  # of a constant mean there is no correlation
        agreement = np.corrcoef(mean, features.mean(0, dtype=np.float64))[0, 1]
    if agreement < 0.2:
        raise InputError(
            f"{source} holds `{name}`, whose correlation with the mean features of the {len(features)} images next to "
            f"it is {agreement:.2f}, expected about 1: they are statistics of another network than Inception as ADM "
            "uses it, or of other images; make them again with `dpar make-reference`, or take them out of the file"
        )


def unseen(images: ImageSet, extractor: Extractor) -> Int[np.ndarray, "n"]:
    """The images that the network has not learnt from: all, unless this index trained the classifier."""
    if isinstance(images, Indexed) and extractor.provenance.get("train_digest") == images.index.digest:
        half = training_half(torch.from_numpy(images.index.labels), extractor.provenance["seed"])
        return (~half).nonzero()[:, 0].numpy()
    return np.arange(len(images))
