"""Fits a linear classifier on a trained model's pooled states and measures it on held-out images (Table 7)."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from dpar.data.codes import CodeStore, open_codes
from dpar.data.loader import epoch_views, sequential
from dpar.device import default_device, full_float32
from dpar.errors import InputError, run_command
from dpar.evaluation.linear_probe import describe_codes, fit_probe, top_k_accuracy
from dpar.experiment.settings import Experiment
from dpar.files import write_json
from dpar.model.dpar import DPAR
from dpar.model.llamagen import LlamaGen
from dpar.patches.rule import PatchRule
from dpar.train.objective import images_at_once
from dpar.weights import load_model, model_config, provenance_of
from dpar.workflow import jobs
from dpar.workflow.stage import Stage, flag

STAGE = Stage(
    "linear_probe",
    __doc__,
    flag("--model-folder"),
    flag("--train", "manifest of training codes, scored for DPAR"),
    flag("--val", "manifest of held-out codes, scored for DPAR"),
    flag("--output", "the accuracies as JSON"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage.

    Raises:
        InputError: the model or the codes are damaged, were not made for one another, or have no classes.
    """
    run = STAGE.start(argv)
    args, experiment = run.args, run.experiment
    settings = {"seed": experiment.seed, **experiment.evaluation.linear_probe.model_dump()}
    name = jobs.measured_state(args.experiment, args.output, args.model_folder)
    with run.job(
        name,
        inputs=[
            *jobs.model(name, args.model_folder),
            *jobs.codes_of_model(experiment, name.partition("/")[0], "train", args.train),
            *jobs.codes_of_model(experiment, name.partition("/")[0], "val", args.val),
        ],
        outputs=[args.output],
        params={"model": name, **settings},
    ) as job:
        described, model = open_model(args.model_folder, default_device())
        made = provenance_of(args.model_folder, "tokenizer", "entropy_model", "step", "threshold", "precision")
        train, val = (
            open_codes(manifest, tokenizer=made["tokenizer"], entropy_model=made["entropy_model"])
            for manifest in (args.train, args.val)
        )
        rule = PatchRule.of_model(described)
        with full_float32():
            found, on_training = accuracies(experiment, model, train, val, rule, made["precision"])
        conditions = {
            **conditions_of(train, val),
            "dims": model.config.width,
            **settings,
            "model": described["sha256"],
            **{name: made[name] for name in ("step", "threshold", "precision")},
        }
        write_json(args.output, found | {"top1_training": on_training, "conditions": conditions})
        job.summary({f"probe/{key}": value for key, value in found.items()})
        text = ", ".join(f"{key} {value:.2f} %" for key, value in found.items())
        print(text, f"on {val.num_images} held-out images")


def open_model(folder: Path, device: torch.device) -> tuple[dict[str, Any], Any]:
    """Description and network of a model that is told the class.

    Raises:
        InputError: it is not, or the folder is damaged.
    """
    described = model_config(folder)
    model = load_model(folder, described["kind"], device)
    if model.config.num_classes is None:
        raise InputError(f"{folder} is a model without classes; Table 7 probes class-conditional ones")
    return described, model


def conditions_of(train: CodeStore, val: CodeStore) -> dict[str, Any]:
    """The images that the probe was fitted and measured on, and what of them, for JSON."""
    return {
        "training_images": train.num_images,
        "training_views": "one per image, drawn at random" if train.num_views > 1 else "the one stored",
        "val_images": val.num_images,
        "train_codes": train.digest,
        "val_codes": val.digest,
        "states": "after the last block, averaged over the image's patches or tokens; null class",
    }


def accuracies(
    experiment: Experiment,
    model: LlamaGen | DPAR,
    train: CodeStore,
    val: CodeStore,
    rule: PatchRule | None,
    precision: Literal["float32", "bfloat16"],
) -> tuple[dict[str, float], float]:
    """Top-1 and top-5 accuracy in per cent on held-out images of the probe fitted on `train`; and top-1 on `train`.

    A k that is not below the number of classes says nothing, and is left out.
    """
    settings, num_classes = experiment.evaluation.linear_probe, model.config.num_classes
    assert num_classes is not None, "open_model refuses models without classes"
    device = next(model.parameters()).device
    size = images_at_once(model.config, device)
    views = epoch_views(np.arange(train.num_images), train.num_views, experiment.seed, epoch=0)
    (states, labels), (others, other_labels) = (
        [part.to(device) for part in describe_codes(model, images, rule=rule, precision=precision, device=device)]
        for images in (sequential(train, size, view=views), sequential(val, size))
    )
    probe = fit_probe(states, labels, num_classes=num_classes, penalty=settings.penalty, iterations=settings.iterations)
    found = {f"top{k}": top_k_accuracy(probe, others, other_labels, k) for k in (1, 5) if k < num_classes}
    return found, top_k_accuracy(probe, states, labels, 1)


if __name__ == "__main__":
    sys.exit(run_command(main))
