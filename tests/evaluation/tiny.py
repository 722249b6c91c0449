"""A folder of small pictures, an experiment about them, and features that need no network."""

import numpy as np
import torch
from PIL import Image

from dpar.data.images import ImageIndex, open_images
from dpar.evaluation.classifier import ImageClassifier
from dpar.evaluation.features import Features
from dpar.experiment.loading import parse_experiment
from dpar.files import read_json
from dpar.weights import save_model
from tests.experiment.test_settings import demo

SIDE, CLASSES, DIMS = 16, 3, 4


def write_experiment(results, evaluation=None, **changes):
    """The path of a resolved experiment in a results folder of its own."""
    settings = {"extractor": "classifier", "reference": "train", "splits": 2, "k": 2}
    settings["classifier"] = {"channels": 4, "dims": DIMS, "steps": 8, "batch_size": 16, "learning_rate": 0.01}
    values = demo(
        **{
            "images__resolution": SIDE,
            "images__num_classes": CLASSES,
            "sampling__num_images": 12,
            "evaluation": settings | (evaluation or {}),
            **changes,
        }
    )
    experiment = parse_experiment(values, "a test")
    results.mkdir(parents=True, exist_ok=True)
    path = results / "experiment.json"
    path.write_text(experiment.model_dump_json())
    return path


def picture(label, number, side=SIDE):
    """Noise under a bright third whose place is the class, as (side, side, 3) bytes."""
    pixels = np.random.default_rng([label, number]).integers(0, 120, (side, side, 3))
    pixels[label * side // CLASSES : (label + 1) * side // CLASSES] += 120
    return pixels.astype(np.uint8)


def write_index(folder, split, each):
    """The path of the index of `each` pictures a class, a little wider than high."""
    for label in range(CLASSES):
        (folder / split / f"class{label}").mkdir(parents=True)
        for number in range(each):
            wide = np.concatenate([picture(label, number)] * 2, 1)[:, : SIDE + 4]
            Image.fromarray(wide).save(folder / split / f"class{label}" / f"{number:03d}.png")
    index = ImageIndex.build(open_images("folder", str(folder / split)), resolution=SIDE, num_classes=CLASSES)
    path = folder / "index" / f"{split}.json"
    path.parent.mkdir(exist_ok=True)
    index.save(path)
    return path


def write_samples(path, count, side=SIDE, first=0, **arrays):
    """An npz of `count` pictures with their labels, class after class in turn."""
    labels = (first + np.arange(count)) % CLASSES
    images = np.stack([picture(label, 1000 + first + n, side) for n, label in enumerate(labels)])
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **({"arr_0": images, "labels": labels} | arrays))
    return path


def write_classifier(folder, provenance=None):
    """A folder with an untrained classifier."""
    torch.manual_seed(0)
    config = ImageClassifier.Config(resolution=SIDE, num_classes=CLASSES, channels=4, dims=DIMS)
    save_model(folder, ImageClassifier(config).eval(), provenance or {})
    return folder


def gaussian_features(count, seed=0, dims=DIMS, shift=0.0, **conditions):
    """Features drawn from a Gaussian, logits that point at their labels two times out of three."""
    random = np.random.default_rng(seed)
    labels = (np.arange(count) % CLASSES).astype(np.int32)
    assigned = np.where(np.arange(count) // CLASSES % 3 == 0, (labels + 1) % CLASSES, labels)
    stated = {"extractor": "classifier", "extractor_sha256": "ab" * 32, "resolution": SIDE, "source": f"seed {seed}"}
    stated["resize"] = "none"
    return Features(
        (random.normal(size=(count, dims)) + shift).astype(np.float32),
        (4 * np.eye(CLASSES)[assigned] + random.normal(size=(count, CLASSES)) / 4).astype(np.float32),
        labels,
        conditions=stated | conditions,
    )


def read(path):
    """The JSON in a file."""
    return read_json(path)
