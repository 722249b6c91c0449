"""Check that an index of images and a tokenizer belong to an experiment."""

from pathlib import Path
from typing import Any

from dpar.data.images import ImageIndex
from dpar.errors import InputError
from dpar.experiment.settings import Experiment


def check_fit(experiment: Experiment, index_path: Path, index: ImageIndex, folder: Path, tokenizer: Any) -> None:
    """Refuses an index or a tokenizer that was made for another experiment.

    Raises:
        InputError: naming what was found and expected.
    """
    facts = [
        (index_path, "resolution", index.resolution, experiment.images.resolution),
        (index_path, "num_classes", index.num_classes, experiment.images.num_classes),
        (folder, "vocab_size", tokenizer.config.vocab_size, experiment.tokenizer.vocab_size),
        (folder, "downsample", tokenizer.config.downsample, experiment.tokenizer.downsample),
    ]
    for path, name, found, expected in facts:
        if found != expected:
            raise InputError(
                f"{path} was made for another experiment: {name} is {found}, expected {expected}; make it again"
            )
