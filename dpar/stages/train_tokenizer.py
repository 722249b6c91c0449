"""Trains the VQ tokenizer, from wherever its state stands (Section 3.1)."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from dpar.data.classes import Classes
from dpar.data.images import ImageIndex
from dpar.errors import InputError, run_command
from dpar.experiment.settings import LEAST_CRITIC_SIDE, Experiment, TokenizerTraining
from dpar.files import digest, sha256_file
from dpar.tokenizer.autoencoder import VQAutoencoder
from dpar.tokenizer.perceptual import load_lpips
from dpar.tokenizer.trainer import TokenizerTask, train_tokenizer
from dpar.train.distributed import ranks
from dpar.weights import save_model
from dpar.workflow import jobs
from dpar.workflow.recipes import RECIPES
from dpar.workflow.stage import RESTART, Run, Stage, flag

STAGE = Stage(
    "train_tokenizer",
    __doc__,
    flag("--train-index"),
    flag("--val-index"),
    flag("--state", "folder of checkpoints; kept between runs"),
    flag("--output", "folder of the tokenizer"),
    RESTART,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage.

    Raises:
        InputError: the experiment imports its tokenizer, an index does not fit it, or the training cannot go on.
    """
    run = STAGE.start(argv)
    args, experiment = run.args, run.experiment
    training, resolution = training_of(experiment, args.experiment), experiment.images.resolution
    sizes = experiment.tokenizer.autoencoder.model_dump(mode="json")
    with (
        ranks() as group,
        run.job(
            inputs=jobs.index("train", args.train_index) + jobs.index("val", args.val_index),
            outputs=[args.output],
            params={
                "data.resolution": resolution,
                "seed": experiment.seed,
                **{f"model.{name}": value for name, value in sizes.items()},
                **{f"train.{name}": value for name, value in training.model_dump(mode="json").items()},
            },
        ) as job,
    ):
        task = task_of(run, training, group.device)
        model = train_tokenizer(task, args.state, group, job, restart=args.restart)
        job.summary({"model/parameters": sum(parameter.numel() for parameter in model.parameters())})
        if group.main:
            provenance = {
                "experiment": digest(experiment.model_dump(mode="json")),
                "images": task.train.digest,
                "perceptual_network": task.perceptual_sha256,
                "resolution": resolution,
                "grid": list(experiment.grid),
                "step": task.steps,
            }
            save_model(args.output, model, provenance)


def training_of(experiment: Experiment, path: Path) -> TokenizerTraining:
    """The settings of the training.

    Args:
        path: of the experiment, for the error.

    Raises:
        InputError: the experiment imports its tokenizer, or its images are too small for the critic.
    """
    training, resolution = experiment.tokenizer.training, experiment.images.resolution
    if training is None:
        raise InputError(
            f"{path} imports its tokenizer from {experiment.tokenizer.weights}; run import_tokenizer, "
            "or give `tokenizer.training` in place of `tokenizer.weights`"
        )
    if training.adversarial_weight > 0 and resolution < LEAST_CRITIC_SIDE:
        raise InputError(
            f"images.resolution {resolution} is too small for the critic, which needs {LEAST_CRITIC_SIDE} pixels; "
            "set `tokenizer.training.adversarial_weight: 0`"
        )
    return training


def task_of(run: Run, training: TokenizerTraining, device: torch.device) -> TokenizerTask:
    """The training: a fresh autoencoder, the images, and the network of the perceptual loss where one is named.

    Raises:
        InputError: an index or the perceptual network does not fit.
    """
    experiment, resolution = run.experiment, run.experiment.images.resolution
    perceptual, perceptual_sha256 = None, None
    if training.perceptual_weight > 0 and training.perceptual_network is not None:
        weights = Path(training.perceptual_network).expanduser()
        perceptual, perceptual_sha256 = load_lpips(weights).to(device), sha256_file(weights)
    learned, held_out = (_index(path, resolution) for path in (run.args.train_index, run.args.val_index))
    torch.manual_seed(experiment.seed)
    return TokenizerTask(
        model=VQAutoencoder(experiment.tokenizer.autoencoder).to(device),
        training=training,
        train=learned,
        val=held_out,
        classes=Classes.of_images(experiment.images, held_out),
        resolution=resolution,
        perceptual=perceptual,
        perceptual_sha256=perceptual_sha256,
        seed=experiment.seed,
        recipe=RECIPES["train_tokenizer"],
    )


def _index(path: Path, resolution: int) -> ImageIndex:
    """The index at `path`, if it is of images of that resolution."""
    index = ImageIndex.load(path)
    if index.resolution != resolution:
        raise InputError(
            f"{path} was made for another experiment: resolution is {index.resolution}, expected {resolution}; "
            "make it again"
        )
    return index


if __name__ == "__main__":
    sys.exit(run_command(main))
