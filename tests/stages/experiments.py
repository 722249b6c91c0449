"""Small experiments for the tests of stages."""

from pathlib import Path

from dpar.experiment.loading import parse_experiment
from dpar.files import write_json

TOKENIZER = {
    "vocab_size": 32,
    "code_dim": 4,
    "channels": 32,
    "multipliers": [1, 1, 1, 1],
    "residual_blocks": 1,
    "z_channels": 32,
    "attention": False,
}


def write_experiment(folder: Path, *, seed=0, codes=None, **images) -> Path:
    """A resolved experiment of 64 px pictures and 8 x 8 tokens in `folder`; `images` and `codes` replace settings."""
    images = {"source": "generated", "resolution": 64, "num_classes": 8} | images
    if images["source"] == "generated":
        images["generated"] = {"train": 16, "val": 8}
    transformer = {"architecture": "llamagen", "width": 32, "heads": 2, "layers": 1}
    training = {"steps": 2, "batch_size": 2}
    values = {
        "name": "tiny",
        "seed": seed,
        "images": images,
        "tokenizer": TOKENIZER | {"training": {"steps": 1, "perceptual_weight": 0}},
        "codes": {"crop_ranges": [1.1], "train_shards": 3, "val_shards": 1} | (codes or {}),
        "entropy_model": {"model": transformer, "training": training},
        "patchify": {"threshold": 1.0},
        "models": {"llamagen": transformer},
        "training": training,
        "evaluation": {},
    }
    path = folder / "experiment.json"
    write_json(path, parse_experiment(values, "the test").model_dump(mode="json"))
    return path
