"""A tokenizer and images small enough to train whole in a test."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dpar.data.classes import Classes
from dpar.data.images import ImageIndex, open_images
from dpar.experiment.settings import Autoencoder, TokenizerTraining
from dpar.tokenizer.autoencoder import VQAutoencoder
from dpar.tokenizer.trainer import TokenizerTask
from dpar.tracking import Job

SIDE = 24
SIZES = Autoencoder(
    vocab_size=16, code_dim=4, channels=32, multipliers=(1, 1), residual_blocks=1, z_channels=8, attention=True
)


def write_images(folder: Path, count: int, side: int = SIDE, seed: int = 0) -> Path:
    """`count` images of coloured halves in two class folders."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        pixels = np.empty((side, side + 4, 3), np.uint8)
        pixels[: side // 2], pixels[side // 2 :] = rng.integers(0, 256, (2, 1, 1, 3))
        path = folder / f"class{i % 2}" / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def image_index(folder: Path, count: int, seed: int = 0) -> ImageIndex:
    """The index of such images."""
    images = open_images("folder", str(write_images(folder, count, seed=seed)))
    return ImageIndex.build(images, resolution=SIDE, num_classes=2)


def training(**changes: Any) -> TokenizerTraining:
    """Settings for a few steps without LPIPS and critic."""
    settings = {
        "steps": 12, "batch_size": 4, "learning_rate": 1e-3, "perceptual_weight": 0.0, "adversarial_weight": 0.0,
        "checkpoint_every": 5, "restart_unused_codes": True,
    }  # fmt: skip
    return TokenizerTraining(**(settings | changes))


def tiny_task(folder: Path, *, seed: int = 0, **changes: Any) -> TokenizerTask:
    """A task on ten images; `changes` are settings of the training."""
    torch.manual_seed(seed)
    return TokenizerTask(
        model=VQAutoencoder(SIZES),
        training=training(**changes),
        train=image_index(folder / "train", 10),
        val=(val := image_index(folder / "val", 4, seed=1)),
        classes=Classes(val.num_classes, val.images.classes),
        resolution=SIDE,
        perceptual=None,
        perceptual_sha256=None,
        seed=seed,
        recipe=1,
    )


class Recorder(Job):
    """A job that keeps what it is told, and can break off at a step as a kill would."""

    def __init__(self, break_at: int | None = None):
        super().__init__(Path("unused"))
        self.break_at = break_at
        self.rows: dict[int, dict[str, float]] = {}
        self.committed: list[int] = []
        self.images: list[tuple[str, int]] = []

    def metrics(self, values, *, step):
        if self.break_at is not None and step >= self.break_at:
            raise RuntimeError("broken off")
        self.rows[step] = dict(values)

    def commit(self, step):
        self.committed.append(step)

    def image(self, image, *, key, step):
        self.images.append((key, step))
