"""Settings that fit images and a machine, for `dpar init`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dpar.data.survey import Survey
from dpar.errors import InputError
from dpar.experiment.composing import CHECKOUT, compose
from dpar.experiment.settings import TOKENIZERS, Autoencoder

Size = Literal["tiny", "small", "base", "paper"]
SIZES: tuple[Size, ...] = ("tiny", "small", "base", "paper")
RESOLUTION: dict[Size, int] = {"tiny": 64, "small": 64, "base": 256, "paper": 256}
HELD_OUT = 0.1
LEAST_IMAGES = 20  # for training: fewer divide into nothing
LEAST_TOKENS = 4  # per side: fewer leave patches no room
IMAGES_PER_SHARD = 5_000
UNEVEN = 0.05  # beyond it samples of each class alike would differ from the images by their classes, too


@dataclass
class Choice:
    """Chosen settings, by the names of their groups, and why where that is not plain.

    Attributes:
        size: the base that they extend.
        settings: groups and what stands in them.
        why: key, or group, -> a comment on it.
    """

    size: Size
    settings: dict[str, Any]
    why: dict[str, str] = field(default_factory=dict)


def choose(found: Survey, name: str, size: Size) -> Choice:
    """The settings for these images on networks of this size.

    Raises:
        InputError: fewer images than can be divided into training, held-out and reference images.
    """
    values, _ = compose([CHECKOUT / "config" / "base" / f"{size}.yaml"])
    held = 0 if found.val else sum(min(max(1, round(HELD_OUT * n)), n - 1) for n in found.images if n)
    train = found.count - held - len(found.unreadable)
    if train < LEAST_IMAGES:
        raise InputError(f"{train} images are left for training of {found.train}; at least {LEAST_IMAGES} are needed")
    choice = Choice(size, {"name": name})
    choice.settings |= _images(found, values, size, held, choice.why)
    choice.settings |= _training(values, train)
    choice.settings["codes"] = {
        "train_shards": max(
            1, min(values["codes"]["train_shards"] if "codes" in values else 256, -(-train // IMAGES_PER_SHARD))
        ),
        "val_shards": max(1, min(10, (found.val_count or held) // IMAGES_PER_SHARD)),
    }
    choice.settings |= _evaluation(found, values, train)
    if (uneven := _unevenness(found.images)) > UNEVEN:
        choice.settings["sampling"]["labels"] = "training"
        choice.why["sampling"] = f"each class as often as the images have it; an even draw would be {uneven:.0%} off"
    return choice


def _unevenness(counts: Sequence[int]) -> float:
    """The share of an even draw over these classes that would have to be of others to have the counts' shares."""
    return 0.5 * sum(abs(n / sum(counts) - 1 / len(counts)) for n in counts)


def _images(found: Survey, values: Mapping[str, Any], size: Size, held: int, why: dict[str, str]) -> dict[str, Any]:
    """Source, splits, and the largest resolution that the images have and the networks are meant for."""
    pixels = _downsample(values["tokenizer"])
    side = sorted(found.sides)[len(found.sides) // 10]  # nine of ten images have it
    resolution = max(LEAST_TOKENS * pixels, min(RESOLUTION[size], side // pixels * pixels))
    images: dict[str, Any] = {"source": found.source, "train": found.train}
    if found.val:
        images["val"] = found.val
    else:
        images["held_out"] = HELD_OUT
        why["images.held_out"] = f"of each class, those whose names have the smallest SHA-256: {held} images"
    images |= {"resolution": resolution, "num_classes": len(found.images)}
    tokens = resolution // pixels
    why["images.resolution"] = f"{tokens} x {tokens} tokens; nine of ten images are at least {side} pixels on a side"
    if found.classes and found.classes[0] is not None:
        why["images.num_classes"] = _few([str(name) for name in found.classes])
    if found.unreadable:
        share = len(found.unreadable) / found.read
        images["max_unreadable"] = math.ceil(200 * share) / 100
        why["images.max_unreadable"] = f"cannot be read: {_few(list(found.unreadable))}"
    return {"images": images}


def _training(values: Mapping[str, Any], train: int) -> dict[str, Any]:
    """Codes, steps and batches: no batch is larger than a quarter of the images."""
    most = 2 ** int(math.log2(max(1, train // 4)))
    tokenizer = {"vocab_size": values["tokenizer"].get("vocab_size", Autoencoder.model_fields["vocab_size"].default)}
    chosen: dict[str, Any] = {}
    if training := values["tokenizer"].get("training"):
        chosen["tokenizer"] = {**tokenizer, "training": _length(training, most)}
    chosen["entropy_model"] = {"training": _length(values["entropy_model"]["training"], most)}
    chosen["training"] = _length(values["training"], most)
    return chosen


def _length(training: Mapping[str, Any], most: int) -> dict[str, Any]:
    unit = "steps" if training.get("steps") else "epochs"
    return {unit: training[unit], "batch_size": min(training.get("batch_size", 256), most)}


def _evaluation(found: Survey, values: Mapping[str, Any], train: int) -> dict[str, Any]:
    """As many samples and dimensions of features as the real images allow to compare."""
    sampling = values["sampling"]
    images, batch = sampling.get("num_images", 50_000), sampling.get("batch_size", 64)
    classifier = values["evaluation"].get("classifier")
    if classifier is None:
        return {"sampling": {"num_images": images, "batch_size": batch}}
    reference = sum(n * train // found.count // 2 for n in found.images)  # what the classifier does not learn from
    most = max(4, reference // 2 - 1)
    dims = next((d for d in (classifier["dims"], 64, 32, 16, 8, 4) if d <= min(most, classifier["dims"])), 4)
    splits = min(values["evaluation"].get("splits", 10), max(1, dims // 2))
    return {
        "sampling": {"num_images": images, "batch_size": batch},
        "evaluation": {
            "classifier": {"dims": dims, "batch_size": min(classifier.get("batch_size", 64), max(2, train // 4))},
            "splits": splits,
        },
    }


def _downsample(tokenizer: Mapping[str, Any]) -> int:
    sizes = {**TOKENIZERS.get(tokenizer.get("variant", ""), {}), **tokenizer}
    return Autoencoder(**{key: sizes[key] for key in Autoencoder.model_fields if key in sizes}).downsample


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f", ... ({len(names)})" if len(names) > 4 else "")


def fitting_size() -> Size:
    """The largest size that this machine is meant for: `base` with a GPU, else `tiny`."""
    import torch  # which takes a second

    return "base" if torch.cuda.is_available() else "tiny"
