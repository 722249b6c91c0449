"""A training small enough to run whole in a test: 4 x 4 tokens, 32 codes, width 32."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from dpar.data.codes import CodeStore
from dpar.data.manifest import Manifest
from dpar.data.shards import CodeMetadata, CodeRows, rows_of_images, write_shard
from dpar.experiment.loading import load_experiment, parse_experiment
from dpar.experiment.settings import EntropyModel, Experiment, Patchify, Training, Transformer
from dpar.files import digest, write_json
from dpar.model.variants import build_entropy_model, build_model, entropy_model_config
from dpar.patches.rule import PatchRule
from dpar.tracking import Job
from dpar.train.distributed import ranks
from dpar.train.loop import train_to
from dpar.train.task import Task
from dpar.weights import CONFIG, WEIGHTS

GRID, VOCAB, CLASSES, VIEWS, IMAGES = (4, 4), 32, 3, 2, 22
Kind = Literal["dpar", "llamagen", "unconditional", "distilled"]


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


def transformer(kind: Kind, dropout: float = 0.1, attention: str = "auto") -> Transformer:
    """The sizes."""
    sizes: dict[str, Any] = {"width": 32, "heads": 2, "layers": 2, "dropout": dropout, "class_dropout": 0.3}
    if kind == "dpar":
        return Transformer(architecture="dpar", encoder_layers=1, decoder_layers=1, attention=attention, **sizes)
    return Transformer(architecture="llamagen", **sizes)


def tiny_task(kind: Kind, *, dropout: float = 0.1, attention: str = "auto", seed: int = 0, **training: Any) -> Task:
    """A task of that kind; `training` overrides its settings."""
    settings = {
        "steps": 20, "batch_size": 8, "learning_rate": 3e-3, "precision": "float32", "checkpoint_every": 4,
        "validate_every": 10, "log_every": 5,
    }  # fmt: skip
    patchify = Patchify(threshold=2.0, max_length=3)
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"vocab_size": VOCAB, "grid": GRID, "num_classes": CLASSES}
    if kind in ("unconditional", "distilled"):
        gate = EntropyModel(kind=kind, model=transformer(kind, dropout), training=Training.model_validate(settings))
        model = build_entropy_model(entropy_model_config(gate, **sizes))
    else:
        model = build_model(transformer(kind, dropout, attention), **sizes)
    return Task(
        model=model,
        training=Training.model_validate(settings | training),
        train=code_store(code_rows()),
        val=code_store(code_rows(1, images=6, views=1)),
        patchify=patchify if kind == "dpar" else None,
        rule=PatchRule.of(patchify, patchify.threshold, GRID[1]) if kind == "dpar" else None,
        seed=seed,
        recipe=1,
    )


def experiment_values(**training: Any) -> dict[str, Any]:
    """Settings of a whole experiment around the tiny models; `training` overrides those of every training."""
    settings = {
        "steps": 8, "batch_size": 8, "learning_rate": 3e-3, "precision": "float32", "checkpoint_every": 2,
        "validate_every": 4, "log_every": 2,
    }  # fmt: skip
    settings |= training
    return {
        "name": "tiny",
        "images": {
            "source": "generated", "generated": {"train": IMAGES, "val": 6}, "resolution": 32, "num_classes": CLASSES,
        },
        "tokenizer": {
            "vocab_size": VOCAB, "channels": 32, "multipliers": [1, 1, 1, 1],
            "training": {"steps": 1, "perceptual_weight": 0},
        },
        "entropy_model": {"model": transformer("unconditional").model_dump(), "training": settings},
        "patchify": {"p_avg": 1.6, "max_length": 3},
        "models": {kind: transformer(kind).model_dump(exclude_unset=True) for kind in ("dpar", "llamagen")},
        "training": settings,
        "evaluation": {"extractor": "classifier"},
    }  # fmt: skip


@dataclass(frozen=True)
class Results:
    """The folder of a run with an experiment, codes (scored or not) and thresholds."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, values: dict[str, Any] | None = None) -> "Results":
        """A folder with all that training stages read."""
        made = cls(folder)
        made.set(values or experiment_values())
        for name, scored in (("codes", False), ("scored", True)):
            write_codes(folder / name / "train", code_rows(scored=scored))
            write_codes(folder / name / "val", code_rows(1, images=6, views=1, scored=scored))
        write_json(folder / "thresholds.json", {"p_avg": {"1.6": {"threshold": 2.0, "achieved": 1.61}}})
        return made

    @property
    def experiment(self) -> Experiment:
        """The experiment."""
        return load_experiment(self.folder / "experiment.json")

    def set(self, values: dict[str, Any]) -> None:
        """Replaces the experiment."""
        write_json(self.folder / "experiment.json", parse_experiment(values, "tiny").model_dump(mode="json"))

    def train_model(
        self, model: str = "dpar", milestone: str = "step8", *more: str, previous: str | None = None
    ) -> list[str]:
        """The stage's flags, as the rule gives them; `previous` is the milestone before, if there is one."""
        output = self.folder / "models" / model / milestone
        paths = {
            "experiment": self.folder / "experiment.json",
            "train": self.folder / "scored/train/manifest.json",
            "val": self.folder / "scored/val/manifest.json",
            "thresholds": self.folder / "thresholds.json",
            "state": self.folder / "state/models" / model,
            "output": output,
            "history": output / "history.jsonl",
        }
        flags = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
        before = [str(output.with_name(previous) / name) for name in (WEIGHTS, CONFIG)] if previous else []
        return [*flags, "--previous", *before, "--model", model, "--milestone", milestone, *more]

    def train_entropy_model(self, network: str = "entropy_model", store: str = "codes") -> list[str]:
        """The stage's flags, as the rule gives them."""
        paths = {
            "experiment": self.folder / "experiment.json",
            "network": network,
            "train": self.folder / store / "train/manifest.json",
            "val": self.folder / store / "val/manifest.json",
            "state": self.folder / "state" / network,
            "output": self.folder / network,
        }
        return [word for name, path in paths.items() for word in (f"--{name}", str(path))]


class Recorder(Job):
    """A job that keeps what it is told, and does `after(step)` at each point of the curves."""

    def __init__(self, after: Callable[[int], None] = lambda step: None):
        self.points: dict[int, dict[str, float]] = {}
        self.commits: list[int] = []
        self.images: dict[int, bytes] = {}
        self.after = after

    def metrics(self, values: Mapping[str, Any], *, step: int) -> None:
        """Keeps a point."""
        self.points[step] = dict(values)
        self.after(step)

    def image(self, image: str | Path | bytes, *, key: str, step: int) -> None:
        """Keeps a PNG."""
        assert isinstance(image, bytes)
        self.images[step] = image

    def commit(self, step: int) -> None:
        """Keeps a commit."""
        self.commits.append(step)


def train(
    folder: Path,
    kind: Kind,
    until: int = 20,
    *,
    job: Job | None = None,
    picture: Callable[[Any], bytes] | None = None,
    restart: bool = False,
    **settings: Any,
) -> Path:
    """Trains a `tiny_task` in `folder` on as many ranks as the environment says; the model folder."""
    output = folder / f"model{until}"
    with ranks() as here:
        train_to(
            tiny_task(kind, **settings),
            until,
            state=folder / "state",
            output=output,
            history=output / "history.jsonl",
            provenance={"made": "for a test"},
            ranks=here,
            job=job or Recorder(),
            picture=picture,
            restart=restart,
        )
    return output


def history(output: Path) -> dict[int, dict[str, float]]:
    """What the curves of a model folder say of each step, speed and memory left out."""
    rows = [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]
    return {row.pop("step"): {k: v for k, v in row.items() if not k.startswith("perf/")} for row in rows}
