"""Experiments, images and indices for the stages of the tokenizer."""

from pathlib import Path
from typing import Any

from dpar.data.images import ImageIndex, open_images
from dpar.files import read_json, write_json
from tests.data.samples import image_bytes, parquet_of_images, sample_image
from tests.stages.experiments import write_experiment

SIDE = 32
SIZES: dict[str, Any] = {
    "vocab_size": 16, "code_dim": 4, "channels": 16, "groups": 4, "multipliers": [1, 1], "pixel_shuffle": 2,
    "residual_blocks": 1, "z_channels": 8, "attention": True,
}  # fmt: skip
TRAINING: dict[str, Any] = {
    "steps": 12, "batch_size": 4, "learning_rate": 2e-3, "perceptual_weight": 0, "adversarial_weight": 0,
    "restart_unused_codes": True, "checkpoint_every": 4,
}  # fmt: skip


def write_tokenizer_experiment(folder: Path, training: dict[str, Any] | None = None, **tokenizer: Any) -> Path:
    """A resolved experiment of 32 px images whose tokenizer is trained, unless it has `weights`."""
    path = write_experiment(folder, resolution=SIDE, num_classes=2)
    values = read_json(path)
    values["tokenizer"] = SIZES | tokenizer
    if "weights" not in tokenizer:
        values["tokenizer"]["training"] = TRAINING | (training or {})
    write_json(path, values)
    return path


def write_index(folder: Path, name: str, count: int) -> Path:
    """An index of `count` images of several sizes."""
    files = [image_bytes(sample_image(i, 32 + 3 * i, 50 - i)) for i in range(count)]
    parquet_of_images(folder / f"{name}.parquet", files, [i % 2 for i in range(count)])
    source = open_images("parquet", str(folder / f"{name}.parquet"))
    path = folder / f"{name}.json"
    ImageIndex.build(source, resolution=SIDE, num_classes=2).save(path)
    return path
