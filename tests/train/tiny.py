"""A training small enough to run whole in a test: 4 x 4 tokens, 32 codes, width 32."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from dpar.config import Patchify, Training, Transformer
from dpar.data.codes import CodeMetadata, CodeRows, CodeStore, Manifest, rows_of_images, write_shard
from dpar.files import digest
from dpar.model.variants import build_model
from dpar.train.loop import Task
from dpar.train.objective import Patching

GRID, VOCAB, CLASSES, VIEWS, IMAGES = (4, 4), 32, 3, 2, 22
Kind = Literal["dpar", "llamagen", "unconditional"]


def code_rows(seed: int = 0, images: int = IMAGES, views: int = VIEWS, *, scored: bool = True) -> CodeRows:
    """Rows whose tokens depend on the class and on the token before, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    length = GRID[0] * GRID[1]
    labels = rng.integers(0, CLASSES, images).astype(np.int32)
    tokens = rng.integers(0, 4, (images, views, length)).cumsum(2) + 7 * labels[:, None, None]
    metadata = CodeMetadata(grid=GRID, vocab_size=VOCAB, resolution=32, views=views, tokenizer="f" * 64)
    rows = rows_of_images((tokens % VOCAB).astype(np.uint16), labels, 0, metadata)
    if not scored:
        return rows
    entropy = rng.uniform(0, 3.5, rows.tokens.shape).astype(np.float32)
    entropy[:, 0] = np.inf
    scored_metadata = metadata.model_copy(update={"entropy_model": "e" * 64})
    return CodeRows(**(vars(rows) | {"entropy": entropy, "metadata": scored_metadata}))


def code_store(rows: CodeRows) -> CodeStore:
    """The rows as the loader reads them."""
    shape = (rows.num_images, rows.metadata.views, rows.metadata.length)
    return CodeStore(
        metadata=rows.metadata,
        digest=digest(rows.tokens.tolist()),
        tokens=rows.tokens.reshape(shape),
        labels=rows.labels[:: rows.metadata.views],
        entropy=None if rows.entropy is None else rows.entropy.reshape(shape),
    )


def write_codes(folder: Path, rows: CodeRows) -> Path:
    """The rows as one shard under a manifest, whose path is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    write_shard(folder / "00000.parquet", rows)
    manifest = Manifest.build([folder / "00000.parquet"], folder / "manifest.json")
    manifest.save()
    return manifest.path


def transformer(kind: Kind, dropout: float = 0.1) -> Transformer:
    """The sizes."""
    sizes: dict[str, Any] = {"width": 32, "heads": 2, "layers": 2, "dropout": dropout, "class_dropout": 0.3}
    if kind == "dpar":
        return Transformer(architecture="dpar", encoder_layers=1, decoder_layers=1, **sizes)
    return Transformer(architecture="llamagen", **sizes)


def tiny_task(kind: Kind, *, dropout: float = 0.1, seed: int = 0, **training: Any) -> Task:
    """A task of that kind; `training` overrides its settings."""
    settings = {
        "steps": 20, "batch_size": 8, "learning_rate": 3e-3, "precision": "float32", "checkpoint_every": 4,
        "validate_every": 10, "log_every": 5,
    }  # fmt: skip
    patchify = Patchify(threshold=2.0, max_length=3)
    torch.manual_seed(seed)
    model = build_model(
        transformer(kind, dropout),
        vocab_size=VOCAB,
        grid=GRID,
        num_classes=None if kind == "unconditional" else CLASSES,
    )
    return Task(
        model=model,
        training=Training.model_validate(settings | training),
        train=code_store(code_rows()),
        val=code_store(code_rows(1, images=6, views=1)),
        patching=Patching(patchify, patchify.threshold, GRID[1]) if kind == "dpar" else None,
        seed=seed,
        recipe=1,
    )
