"""Codes and entropies that are made up, in a store on disk: the speed of a training depends on their sizes alone."""

from pathlib import Path

import numpy as np
from jaxtyping import Float32

from dpar.data.codes import CodeStore, open_codes
from dpar.data.manifest import Manifest
from dpar.data.shards import CodeMetadata, CodeRows, rows_of_images, write_shard
from dpar.paper import DOWNSAMPLE, NUM_CLASSES, VOCAB_SIZE


def made_up_entropies(images: int, grid: tuple[int, int], rng: np.random.Generator) -> Float32[np.ndarray, "images T"]:
    """Entropies in nats that differ from image to image, and within one by region and by token; e_0 is +inf."""
    rows, columns = grid
    level = rng.normal(size=(images, 1, 1))
    regions = rng.normal(size=(images, -(-rows // 4), -(-columns // 4))).repeat(4, 1).repeat(4, 2)
    tokens = rng.normal(size=(images, rows, columns))
    entropy = (6 + 0.5 * level + regions[:, :rows, :columns] + tokens).reshape(images, -1).astype(np.float32)
    entropy[:, 0] = np.inf
    return entropy


def made_up_codes(folder: Path, *, images: int, resolution: int) -> CodeStore:
    """A store in `folder` with made-up codes and entropies, written and opened as a pipeline does it.

    Args:
        resolution: pixels of a side.
    """
    rng = np.random.default_rng(0)
    rows = columns = resolution // DOWNSAMPLE
    metadata = CodeMetadata(
        grid=(rows, columns), vocab_size=VOCAB_SIZE, resolution=resolution, views=1, tokenizer="drawn"
    )
    tokens = rng.integers(0, VOCAB_SIZE, (images, 1, rows * columns)).astype(np.uint16)
    labels = rng.integers(0, NUM_CLASSES, images).astype(np.int32)
    unscored = rows_of_images(tokens, labels, 0, metadata)
    scored = metadata.model_copy(update={"entropy_model": "drawn"})
    entropy = made_up_entropies(images, (rows, columns), rng)
    write_shard(folder / "00000.parquet", CodeRows(**(vars(unscored) | {"entropy": entropy, "metadata": scored})))
    manifest = Manifest.build([folder / "00000.parquet"], folder / "manifest.json")
    manifest.save()
    return open_codes(manifest.path, cache=folder / "cache")
