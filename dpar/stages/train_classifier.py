"""Trains the small classifier whose features stand in for Inception's on small images.

It learns from one half of the training images, a random half of each class; the other half is what samples are compared
with. It is quick enough to start again from nothing when it is interrupted.
"""

import sys
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dpar import tracking
from dpar.data.classes import Classes
from dpar.data.crops import to_model_input
from dpar.data.images import ImageIndex
from dpar.device import default_device
from dpar.errors import run_command
from dpar.evaluation.classifier import ImageClassifier, fit_classifier, training_half
from dpar.evaluation.features import index_batches
from dpar.experiment.settings import Classifier
from dpar.files import digest
from dpar.weights import save_model
from dpar.workflow import jobs
from dpar.workflow.stage import Stage, flag

REPORT_EVERY = 50  # steps

STAGE = Stage(
    "train_classifier",
    __doc__,
    flag("--train-index", "index/train.json"),
    flag("--val-index", "index/val.json"),
    flag("--output", "folder of the classifier"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage."""
    run = STAGE.start(argv)
    args, experiment = run.args, run.experiment
    settings = experiment.evaluation.classifier
    with run.job(
        inputs=jobs.index("train", args.train_index) + jobs.index("val", args.val_index),
        outputs=[args.output],
        params={**settings.model_dump(), "seed": experiment.seed},
    ) as job:
        train, val = ImageIndex.load(args.train_index), ImageIndex.load(args.val_index)
        config = ImageClassifier.Config(
            resolution=experiment.evaluation.resolution or experiment.images.resolution,
            num_classes=experiment.images.num_classes,
            channels=settings.channels,
            dims=settings.dims,
        )
        half = training_half(torch.from_numpy(train.labels), experiment.seed)
        device = default_device()
        model = fit(train, half, config, settings, experiment.seed, device, job)
        found = {
            "accuracy": _accuracy(model, val, torch.ones(len(val), dtype=torch.bool), device),
            "accuracy_unseen_half": _accuracy(model, train, ~half, device),
        }
        provenance = {
            "experiment": digest(experiment.model_dump(mode="json")),
            "settings": settings.model_dump(mode="json"),
            "seed": experiment.seed,
            "train_images": int(half.sum()),
            "train_digest": train.digest,
            "val_images": len(val),
        }
        if names := train.images.classes or Classes.of_images(experiment.images, train).names:
            provenance["classes"] = list(names)  # by which samples in class folders are told apart
        save_model(args.output, model, provenance | found)
        job.summary({f"val/{name}": value for name, value in found.items()})
        print(
            f"accuracy {found['accuracy']:.3f} on {len(val)} validation images, "
            f"{found['accuracy_unseen_half']:.3f} on the other half of the training images"
        )


def fit(
    index: ImageIndex,
    half: Bool[Tensor, "N"],
    config: ImageClassifier.Config,
    settings: Classifier,
    seed: int,
    device: torch.device,
    job: tracking.Job,
) -> ImageClassifier:
    """The classifier trained on these images of the index; the job and standard error are told its loss."""

    def report(step: int, loss: Float[Tensor, ""]) -> None:
        if step % REPORT_EVERY == 0 or step in (1, settings.steps):
            job.metrics({"train/loss": loss.item()}, step=step)
            print(f"step {step} of {settings.steps}: loss {loss.item():.3f} nats", file=sys.stderr, flush=True)

    return fit_classifier(
        torch.cat(list(index_batches(index, _rows(half), config.resolution))),
        torch.from_numpy(index.labels)[half],
        config,
        steps=settings.steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        seed=seed,
        device=device,
        report=report,
    )


@torch.inference_mode()
def _accuracy(
    model: ImageClassifier, index: ImageIndex, chosen: Bool[Tensor, "N"], device: torch.device
) -> float | None:
    rows = _rows(chosen)
    batches = index_batches(index, rows, model.config.resolution)
    assigned = [model(to_model_input(batch).to(device))[1].argmax(1).cpu().numpy() for batch in batches]
    return float((np.concatenate(assigned) == index.labels[rows]).mean()) if assigned else None


def _rows(chosen: Bool[Tensor, "N"]) -> Int[np.ndarray, "n"]:
    return chosen.nonzero()[:, 0].numpy()


if __name__ == "__main__":
    sys.exit(run_command(main))
