"""Every metric of a set of samples against a reference, with the conditions that belong to the numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dpar import __version__
from dpar.device import default_device, full_float32
from dpar.errors import InputError
from dpar.evaluation.features import Features
from dpar.evaluation.frechet import Gaussian, fit_gaussian, frechet_distance
from dpar.evaluation.inception_score import inception_score, splits_differ
from dpar.evaluation.kernel_distance import kernel_distance, subset_kernel_distance
from dpar.evaluation.precision_recall import precision_recall
from dpar.experiment.settings import Experiment

ALL_PAIRS = 1e12  # multiplications: up to here KID takes all pairs, about a minute on two cores; beyond, subsets
SUBSETS, SUBSET_SIZE = 100, 1000
COPIES = 0.01  # of the images of a set may be copies before they are worth a warning
OTHER_MIX = 0.05  # of a set may be of other classes than of the reference's, next to what chance does


@dataclass(frozen=True)
class Comparison:
    """Values by name (null = could not be measured), what they rest on, and what a reader should be warned of."""

    values: dict[str, float | None]
    conditions: dict[str, Any]
    warnings: list[str] = field(default_factory=list)


def metric_name(features: Features) -> str:
    """Name of the Frechet distance of these features: FID for all of Inception's alone."""
    conditions = features.conditions
    return distance_name(
        conditions.get("extractor", "features"), features.features.shape[1], whole="dimensions" not in conditions
    )


def distance_name(network: str, dims: int, *, whole: bool) -> str:
    """Name of the Frechet distance of a network's features, `whole` or the first dimensions of them alone."""
    return "FID" if network == "inception" and whole else f"FD[{network},{dims}]"


def compare(
    samples: Features, reference: Features, *, split_size: int, k: int = 3, seed: int = 0, shuffle: bool = True
) -> Comparison:
    """The distances, precision and recall of samples against a reference, their Inception Score and class agreement.

    Statistics that a file holds stand for a reference; samples are measured by their images.

    Args:
        split_size: images per split of the Inception Score.
        k: the neighbour that precision and recall reach to.
        seed: of the shuffle, and of KID's subsets where the sets are too large for all pairs.
        shuffle: whether a file that is sorted by class is shuffled for the Inception Score, or only warned of.

    Raises:
        InputError: the two come from different networks or resolutions, or are too few for their dimensions.
    """
    _check_same_network(samples, reference)
    count, dims = samples.features.shape
    warnings, samples = _warnings(samples, reference), samples.own()
    distance = frechet_distance(gaussian_of(samples), gaussian_of(reference))
    ours, theirs = torch.from_numpy(samples.features), torch.from_numpy(reference.features)
    kernel, kernel_condition = _kernel_distance(ours, theirs, seed)
    device = default_device()  # any gives the same shares: what rounding could turn is settled in float64
    with full_float32():
        nearest = precision_recall(ours.to(device), theirs.to(device), k)
    values: dict[str, float | None] = {
        "frechet_distance": distance,
        "spatial_frechet_distance": None,
        "kernel_distance": kernel,
        "precision": nearest.precision,
        "recall": nearest.recall,
        "inception_score": None,
        "inception_score_sd": None,
        "class_agreement": class_agreement(samples),
    }
    if samples.spatial is not None and (reference.spatial is not None or "spatial" in reference.statistics):
        values["spatial_frechet_distance"] = frechet_distance(
            gaussian_of(samples, "spatial"), gaussian_of(reference, "spatial")
        )
    conditions = {
        "samples": count,
        "reference_samples": len(reference),
        "reference_statistics": "stored in the reference" if reference.statistics else "of the reference images",
        "dims": dims,
        "k": k,
        "kernel": kernel_condition,
        "dtype": "float64",
    }
    if samples.logits is not None:
        split_size = min(split_size, count)
        logits, order, more = _ordered_logits(samples, samples.logits, split_size, seed if shuffle else None)
        score = inception_score(logits, split_size)
        values |= {"inception_score": score.mean, "inception_score_sd": score.std}
        conditions |= {"splits": score.splits, "split_size": split_size, "order": order}
        warnings += more
    return Comparison(values, conditions, warnings)


def _ordered_logits(
    samples: Features, stored: Float[np.ndarray, "N C"], split_size: int, seed: int | None
) -> tuple[Float[Tensor, "N C"], str, list[str]]:
    """The class scores in the order in which they are split, that order in words, and warnings.

    Args:
        seed: of the shuffle of a file that is sorted by class; None leaves it as it is.
    """
    logits = torch.from_numpy(stored)
    if not splits_differ(_classes(samples), split_size):
        return logits, "as in the file", []
    if seed is None:
        warning = (
            "the samples are sorted by class: the Inception Score of consecutive splits is too low; "
            "shuffle the file, images and logits alike"
        )
        return logits, "as in the file", [warning]
    logits = logits[torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed))]
    return logits, f"shuffled with seed {seed}, because the file is sorted by class", []


def _warnings(samples: Features, reference: Features) -> list[str]:
    """Everything that a reader of the numbers should know of the two sets."""
    found, dims = [], samples.features.shape[1]
    for features, name in ((samples, "samples"), (reference, "reference images")):
        # statistics stand for a larger set, whose size the file does not say
        if len(features) < 10 * dims and not features.statistics:
            found.append(
                f"{len(features)} {name} are few for features of {dims} dimensions: 10 times as many are advised"
            )
        if len(features) > 1 and (features.features == features.features[0]).all():
            found.append(f"the features of all {name} are equal: the network tells none of these images from another")
    found += _copies(samples, reference)
    found += _other_mix(samples, reference)
    if samples.statistics:
        found.append("the statistics in the file of the samples are not used: these numbers are of its images")
    sampling = (samples.conditions.get("drawn") or {}).get("sampling")
    shards = sampling.get("shards") if isinstance(sampling, dict) else None
    if isinstance(shards, int) and shards > samples.conditions.get("shards", shards):
        found.append(
            f"{samples.conditions['shards']} of the {shards} shards of these samples: the rest is not drawn or named"
        )
    folders, order = samples.conditions.get("class_folders"), samples.conditions.get("class_order")
    if samples.conditions.get("extractor") == "classifier" and samples.logits is not None and folders is not None:
        if folders != (classes := samples.logits.shape[1]):
            found.append(
                f"no class agreement: the samples lie in {folders} class folders, and the classifier knows {classes} "
                "classes; which are which is not known"
            )
        elif order:
            found.append(
                f"class folders are counted in the order of their names ({order}): class agreement holds only if the "
                "classifier has learnt from folders of the same names"
            )
    if other := samples.conditions.get("other_classes"):
        found.append(f"no class agreement: {other}")
    digest = samples.conditions.get("source_digest")
    if digest is not None and digest == reference.conditions.get("source_digest"):
        found.append("samples and reference are the same images: the numbers say nothing")
    return found


def _copies(samples: Features, reference: Features) -> list[str]:
    """Warnings of images that are there twice, or in both sets, if they are more than the few of published data sets.

    Copies are known by their features, which are equal to the bit.
    """
    ours, theirs = ([hash(row.tobytes()) for row in features.features] for features in (samples, reference))
    if min(len({*ours}), len({*theirs})) < 2:  # which says that the network tells none from another
        return []
    known, found = {*theirs}, []
    for name, rows in (("samples", ours), ("reference images", theirs)):
        if (twice := len(rows) - len({*rows})) > COPIES * len(rows):
            found.append(f"{twice} of {len(rows)} {name} are copies of others by their features, and count again")
    if (shared := sum(row in known for row in ours)) > COPIES * len(ours):
        found.append(f"{shared} of {len(ours)} samples are reference images too by their features: no new images")
    return found


def _other_mix(samples: Features, reference: Features) -> list[str]:
    """The warning of sets whose classes have other shares by more than the chance of a draw explains."""
    if samples.labels is None or reference.labels is None or reference.statistics:
        return []
    used, places = np.unique(np.concatenate([samples.labels, reference.labels]), return_inverse=True)
    counts = (np.bincount(x, minlength=len(used)) for x in np.split(places, [len(samples)]))
    moved = 0.5 * np.abs(next(counts) / len(samples) - next(counts) / len(reference)).sum()
    chance = math.sqrt(len(used) / (2 * math.pi) * (1 / len(samples) + 1 / len(reference)))  # its mean, at most
    if moved <= OTHER_MIX + chance:
        return []
    return [
        f"the classes have other shares: {moved:.0%} of the samples would have to be of another class to have those of "
        "the reference, and a part of the distances is due to that; draw each class as often as it is there "
        "(`sampling.labels: training`), or compare with a reference whose classes have the samples' shares"
    ]


def noise_floor(
    reference: Features, *, size: int, halvings: int, splits: int, k: int = 3, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Noise floor: each metric's values, mean and standard deviation of real images against other real images.

    Either half has every class in the reference's proportions, as samples with balanced labels have: the chance that
    one half has more of a class would count for more than all else. Samples are compared with the whole reference,
    which is larger than a half, so that their own noise is a little lower.

    Args:
        size: images in each of the two disjoint random halves, at most half of the reference.
        halvings: how often they are drawn.
        splits: of the Inception Score.
        seed: of the drawing.

    Raises:
        InputError: the halves are too small for the dimensions.
    """
    drawn: list[dict[str, float | None]] = []
    for halving in range(halvings):
        first, second = (reference.take(rows) for rows in disjoint_halves(reference, size, [seed, halving]))
        drawn.append(compare(first, second, split_size=math.ceil(size / splits), k=k, seed=seed).values)
    return {name: _summary([values[name] for values in drawn]) for name in drawn[0] if drawn[0][name] is not None}


def disjoint_halves(features: Features, size: int, seed: Sequence[int]) -> tuple[Int[np.ndarray, "n"], ...]:
    """Rows of two random sets of `size` images that share none and have each class in equal proportions."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(features))
    if features.labels is not None:
        order = order[np.argsort(features.labels[order], kind="stable")]
    chosen = order[np.arange(2 * size) * len(order) // (2 * size)]
    return random.permutation(chosen[::2]), random.permutation(chosen[1::2])


def class_agreement(samples: Features) -> float | None:
    """The share of samples that the classifier assigns to the class they were drawn for.

    Null without labels, for classes of other names, or class folders of another number, than the classifier's, and for
    Inception, whose 1008 outputs are not ImageNet's classes in their order.
    """
    if samples.labels is None or samples.logits is None or samples.conditions.get("extractor") != "classifier":
        return None
    folders = samples.conditions.get("class_folders", samples.logits.shape[1])
    if folders != samples.logits.shape[1] or "other_classes" in samples.conditions:
        return None  # which folder is which of the classifier's classes nobody knows
    return float((samples.logits.argmax(1) == samples.labels).mean())


def comparable(samples: Features, reference: Features, conditions: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether the numbers compare with those of the ADM protocol (the paper's tables), and why not.

    Args:
        conditions: of the comparison.
    """
    against = []
    if (extractor := samples.conditions.get("extractor")) != "inception":
        against.append(f"the feature network is {extractor or 'unknown'}, not Inception v3 of 2015-12-05")
    elif samples.conditions.get("profile", "adm") != "adm":
        against.append(f"images were resized by {samples.conditions['resize']}, not as ADM does")
    if dimensions := samples.conditions.get("dimensions"):
        against.append(f"the first {dimensions} dimensions of the features alone are compared")
    if not reference.statistics:
        against.append("the reference is a set of images, not ADM's file of training-set statistics")
    elif made_from := (reference.conditions.get("drawn") or {}).get("made_from"):
        against.append(f"the reference was made from {made_from}, not by ADM")
    if len(samples) != 50_000:
        against.append(f"{len(samples):,} samples, not 50,000")
    if (resolution := samples.conditions.get("resolution")) != 256:
        against.append(f"images of {resolution} pixels, not 256")
    if (split_size := conditions.get("split_size", 5000)) != 5000:
        against.append(f"an Inception Score of splits of {split_size:,}, not 5,000")
    if conditions["k"] != 3:
        against.append(f"precision and recall with k = {conditions['k']}, not 3")
    return not against, "; ".join(
        against
    ) or "ADM's protocol: Inception, stored training-set statistics, 50,000 samples"


def _check_same_network(samples: Features, reference: Features) -> None:
    if samples.features.shape[1] != reference.features.shape[1]:
        raise InputError(
            f"samples have features of {samples.features.shape[1]} dimensions and the reference of "
            f"{reference.features.shape[1]}; extract both with one network"
        )
    for name in ("extractor_sha256", "resize", "resolution"):
        a, b = samples.conditions.get(name), reference.conditions.get(name)
        if a is not None and b is not None and a != b:
            raise InputError(
                f"the {name} of the samples ({samples.conditions.get('source')}) is {a}, that of the reference "
                f"({reference.conditions.get('source')}) is {b}; "
                "extract both with one network, in one way, at one resolution"
            )


def gaussian_of(features: Features, which: str = "features") -> Gaussian:
    """The stored statistics that these features stand for, else their own; `which` = `features` or `spatial`.

    Raises:
        InputError: the features are too few for their dimensions, or not finite; it names their source.
    """
    if which in features.statistics:
        return features.statistics[which]
    try:
        return fit_gaussian(torch.from_numpy(getattr(features, which)))
    except InputError as error:
        raise InputError(f"{features.conditions.get('source', 'features')}: {error}") from None


def _kernel_distance(a: Float[Tensor, "N D"], b: Float[Tensor, "M D"], seed: int) -> tuple[float, str]:
    if (len(a) + len(b)) ** 2 * a.shape[1] <= ALL_PAIRS:
        return kernel_distance(a, b), "all pairs"
    distance = subset_kernel_distance(a, b, subsets=SUBSETS, size=SUBSET_SIZE, seed=seed)
    return distance, f"{SUBSETS} random subsets of {SUBSET_SIZE}, seed {seed}"


def _classes(samples: Features) -> Tensor:
    known = samples.labels if samples.labels is not None else np.asarray(samples.logits).argmax(1)
    return torch.from_numpy(known.astype(np.int64))


def _summary(values: Sequence[float | None]) -> dict[str, Any]:
    numbers = [value for value in values if value is not None]
    return {"mean": mean(numbers), "sd": stdev(numbers) if len(numbers) > 1 else None, "values": numbers}


def shared_conditions(experiment: Experiment, reference: Features) -> dict[str, Any]:
    """Conditions of every number against this reference."""
    stated = reference.conditions
    seen = ", the half that the classifier has not seen" if stated.get("left_out") else ""
    return {
        "experiment": experiment.name,
        "reference": f"{experiment.evaluation.reference}{seen}",
        "reference_source": stated.get("source"),
        "reference_digest": stated.get("source_digest"),
        "crop": stated.get("crop"),
        "profile": stated.get("profile"),
        "resize": stated.get("resize"),
        "extractor": stated.get("extractor"),
        "extractor_sha256": stated.get("extractor_sha256"),
        "extractor_accuracy": stated.get("extractor_accuracy"),
        "resolution": stated.get("resolution"),
        "versions": {"dpar": __version__, "torch": torch.__version__, "numpy": np.__version__},
    }
