"""Fits a linear classifier on a trained model's pooled states and measures it on held-out images (Table 7)."""

import sys
from collections.abc import Sequence

import numpy as np

from dpar.data.codes import open_codes
from dpar.data.loader import epoch_views, sequential
from dpar.device import default_device, full_float32
from dpar.errors import InputError, run_command
from dpar.evaluation.linear_probe import describe_codes, fit_probe, top_k_accuracy
from dpar.files import write_json
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
    settings = experiment.evaluation.linear_probe
    name = jobs.measured_state(args.experiment, args.output, args.model_folder)
    with run.job(
        name,
        inputs=[
            *jobs.model(name, args.model_folder),
            *jobs.codes_of_model(experiment, name.partition("/")[0], "train", args.train),
            *jobs.codes_of_model(experiment, name.partition("/")[0], "val", args.val),
        ],
        outputs=[args.output],
        params={"model": name, "seed": experiment.seed, **settings.model_dump()},
    ) as job:
        described, device = model_config(args.model_folder), default_device()
        made = provenance_of(args.model_folder, "tokenizer", "entropy_model", "step", "threshold", "precision")
        model = load_model(args.model_folder, described["kind"], device)
        if model.config.num_classes is None:
            raise InputError(f"{args.model_folder} is a model without classes; Table 7 probes class-conditional ones")
        rule = PatchRule.of_model(described)
        train, val = (
            open_codes(manifest, tokenizer=made["tokenizer"], entropy_model=made["entropy_model"])
            for manifest in (args.train, args.val)
        )
        size = images_at_once(model.config, device)
        views = epoch_views(np.arange(train.num_images), train.num_views, experiment.seed, epoch=0)
        with full_float32():
            (seen, seen_labels), (unseen, unseen_labels) = (
                [
                    part.to(device)
                    for part in describe_codes(model, images, rule=rule, precision=made["precision"], device=device)
                ]
                for images in (sequential(train, size, view=views), sequential(val, size))
            )
            probe = fit_probe(
                seen,
                seen_labels,
                num_classes=model.config.num_classes,
                penalty=settings.penalty,
                iterations=settings.iterations,
            )
            found = {
                f"top{k}": top_k_accuracy(probe, unseen, unseen_labels, k)
                for k in (1, 5)
                if k < model.config.num_classes
            }
            on_training = top_k_accuracy(probe, seen, seen_labels, 1)
        write_json(
            args.output,
            found
            | {
                "top1_training": on_training,
                "conditions": {
                    "training_images": len(seen),
                    "training_views": "one an image, drawn at random" if train.num_views > 1 else "the one stored",
                    "val_images": len(unseen),
                    "train_codes": train.digest,
                    "val_codes": val.digest,
                    "states": "after the last block, averaged over the image's patches or tokens; null class",
                    "dims": seen.shape[1],
                    "seed": experiment.seed,
                    **settings.model_dump(),
                    "model": described["sha256"],
                    "step": made["step"],
                    "threshold": made["threshold"],
                    "precision": made["precision"],
                },
            },
        )
        job.summary({f"probe/{key}": value for key, value in found.items()})
        print(", ".join(f"{key} {value:.2f} %" for key, value in found.items()), f"on {len(unseen)} held-out images")


if __name__ == "__main__":
    sys.exit(run_command(main))
