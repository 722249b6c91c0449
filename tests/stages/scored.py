"""A results folder with scored codes of 8 x 8 tokens, small enough for a test."""

from pathlib import Path
from typing import Any

import numpy as np

from dpar.data.manifest import Manifest
from dpar.data.shards import CodeMetadata, CodeRows, rows_of_images, write_shard
from dpar.experiment.loading import parse_experiment
from dpar.files import write_json

VIEWS = 2
BLOCK = {"width": 32, "heads": 2}
STEPS = {"steps": 1}
EXPERIMENT = {
    "name": "tiny",
    "images": {"source": "generated", "generated": {"train": 10, "val": 5}, "resolution": 64, "num_classes": 8},
    "tokenizer": {
        "vocab_size": 256,
        "channels": 32,
        "multipliers": [1, 1, 2, 2],
        "training": {**STEPS, "perceptual_weight": 0},
    },
    "entropy_model": {"model": {"architecture": "llamagen", "layers": 1, **BLOCK}, "training": STEPS},
    "patchify": {"p_avg": 1.8, "max_length": 4},
    "models": {
        "dpar": {"architecture": "dpar", "encoder_layers": 1, "layers": 2, "decoder_layers": 1, **BLOCK},
        "llamagen": {"architecture": "llamagen", "layers": 3, **BLOCK},
    },
    "training": STEPS,
    "evaluation": {},
}


def write_experiment(results: Path, **changes: Any) -> Path:
    """The experiment with some groups of settings replaced, as the Snakefile writes it."""
    path = results / "experiment.json"
    write_json(path, parse_experiment(EXPERIMENT | changes, "the test").model_dump(mode="json"))
    return path


def write_scored(results: Path, images: int = 10, *, scored: bool = True, **metadata: Any) -> tuple[Path, np.ndarray]:
    """A manifest over two shards of scored codes, and the entropies of all views in their order."""
    rng = np.random.default_rng(0)
    entropy = rng.normal(3.0, 0.8, (images * VIEWS, 64)).astype(np.float32)
    entropy[:, 0] = np.inf
    about = CodeMetadata(
        **{"grid": (8, 8), "vocab_size": 256, "resolution": 64, "views": VIEWS, "tokenizer": "f" * 64} | metadata
    )
    folder, paths = results / "scored" / "train", []
    folder.mkdir(parents=True)
    for shard, numbers in enumerate(np.array_split(np.arange(images), 2)):
        tokens = rng.integers(0, 256, (len(numbers), VIEWS, 64)).astype(np.uint16)
        rows = rows_of_images(tokens, np.zeros(len(numbers), np.int32), int(numbers[0]), about)
        if scored:
            here = entropy.reshape(images, VIEWS, 64)[numbers].reshape(-1, 64)
            gated = about.model_copy(update={"entropy_model": "e" * 64})
            rows = CodeRows(**(vars(rows) | {"entropy": here, "metadata": gated}))
        paths.append(folder / f"{shard:05d}.parquet")
        write_shard(paths[-1], rows)
    manifest = Manifest.build(paths, folder / "manifest.json")
    manifest.save()
    return manifest.path, entropy
