"""Trains DPAR (Algorithm 1) or the LlamaGen baseline up to a milestone (Section 4.1).

The state folder makes it one long job in pieces: run again, after a milestone or after any kind of death, the same
command goes on from the last checkpoint. SIGTERM, SIGINT and SIGUSR1 save the state and end the process with status 75,
"start me again", which is also the launcher's.
"""

import sys
from collections.abc import Sequence

import torch

from dpar import tracking
from dpar.data.classes import Classes
from dpar.data.codes import open_codes
from dpar.data.loader import steps_per_epoch
from dpar.errors import InputError, run_command
from dpar.experiment.cells import merged_thresholds, model_cells, threshold_of
from dpar.model.dpar import DPARConfig
from dpar.model.variants import build_model
from dpar.model.variants import model_config as sizes_of
from dpar.patches.rule import PatchRule
from dpar.sampling.preview import previewer
from dpar.train.distributed import ranks
from dpar.train.loop import Task, flat_params, train_to
from dpar.weights import model_config
from dpar.workflow import jobs
from dpar.workflow.recipes import recipe_number
from dpar.workflow.stage import RESTART, THRESHOLDS, Stage, flag

STAGE = Stage(
    "train_model",
    __doc__,
    flag("--model", "name of the model cell", type=str),
    flag("--milestone", "where to stop, such as step400 or epoch50", type=str),
    flag("--train", "manifest of training codes, scored for DPAR"),
    flag("--val", "manifest of held-out codes, scored for DPAR"),
    flag("--classes", "index/train.json: the names of the classes, for the model folder", required=False),
    THRESHOLDS,
    flag("--tokenizer", "folder; with it, each checkpoint's samples are drawn", required=False),
    flag("--entropy-model", "folder; read where patches are dynamic", required=False),
    flag("--previous", "files of the milestone that the state has come from", nargs="*", default=[]),
    flag("--state", "folder of checkpoints, kept between calls"),
    flag("--output", "the model folder"),
    flag("--history", "curves as JSON lines"),
    RESTART,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage.

    Raises:
        InputError: an unknown cell or milestone, codes of something else, a state of something else, a loss that is not
            finite, or no space.
        SystemExit: with status 75 after a signal, when the state has been saved.
    """
    run = STAGE.start(argv)
    args, experiment = run.args, run.experiment
    cells = model_cells(experiment)
    if args.model not in cells:
        raise InputError(f"--model {args.model}: there is no such model; this experiment has {', '.join(cells)}")
    cell = cells[args.model]
    if args.milestone not in cell.milestones:
        raise InputError(f"--milestone {args.milestone}: {args.model} keeps {', '.join(cell.milestones)}")
    sizes = {
        "vocab_size": experiment.tokenizer.vocab_size,
        "grid": experiment.grid,
        "num_classes": experiment.images.num_classes,
    }
    before = cell.milestones[: cell.milestones.index(args.milestone)]
    is_dpar = isinstance(sizes_of(cell.transformer, **sizes), DPARConfig)
    entropy_model_folder = args.entropy_model if is_dpar and cell.patchify.is_dynamic else None
    looked_with = [folder for folder in (args.tokenizer, entropy_model_folder) if args.tokenizer and folder]
    with (
        ranks() as here,
        run.job(
            f"{args.model}/{args.milestone}",
            inputs=[
                *jobs.codes_of_model(experiment, args.model, "train", args.train),
                *jobs.codes_of_model(experiment, args.model, "val", args.val),
                *jobs.class_names(args.classes),
                *jobs.thresholds(experiment, args.thresholds),
                *(jobs.tokenizer(args.tokenizer) if args.tokenizer else []),
                *(wanted for folder in looked_with[1:] for wanted in jobs.network("entropy_model", folder)),
                *tracking.made_by(tuple(f"train_model[{args.model}/{name}]" for name in before), *args.previous),
            ],
            outputs=[args.output, args.history],
            params={"model": args.model, "milestone": args.milestone, "seed": cell.seed}
            | flat_params(model=cell.transformer, patch=cell.patchify if is_dpar else None, train=cell.training),
        ) as job,
    ):
        resolution = experiment.images.resolution
        train = open_codes(args.train, resolution=resolution, vocab_size=sizes["vocab_size"])
        tokenizer, entropy_model = train.metadata.tokenizer, train.metadata.entropy_model
        precision = train.metadata.entropy_precision
        val = open_codes(
            args.val,
            resolution=resolution,
            tokenizer=tokenizer,
            entropy_model=entropy_model,
            entropy_precision=precision,
        )
        thresholds = merged_thresholds(args.thresholds)
        patchify = cell.patchify if is_dpar else None
        rule = patchify and PatchRule.of(patchify, threshold_of(patchify, thresholds), experiment.grid[1])
        for folder, expected in zip(looked_with, (tokenizer, entropy_model), strict=False):
            if (found := model_config(folder)["sha256"]) != expected:
                raise InputError(
                    f"{folder} (sha256 {found[:12]}...) is not what made {args.train} ({str(expected)[:12]}...); "
                    "give the folders of one experiment"
                )
        torch.manual_seed(cell.seed)
        task = Task(
            model=build_model(cell.transformer, **sizes).to(here.device),
            training=cell.training,
            train=train,
            val=val,
            patchify=patchify,
            rule=rule,
            seed=cell.seed,
            recipe=recipe_number("train_model", cell.transformer.sizes["architecture"]),
        )
        picture = None
        if args.tokenizer is not None and here.main:
            picture = previewer(
                args.tokenizer,
                entropy_model_folder,
                rule=rule,
                sampling=experiment.sampling,
                seed=experiment.seed,
                entropy_precision=precision,
            )
        until = int(args.milestone.removeprefix(cell.training.unit))
        if cell.training.unit == "epoch":
            until *= steps_per_epoch(train, cell.training.batch_size)
        provenance = {
            "tokenizer": tokenizer,
            "entropy_model": entropy_model,
            **({"entropy_precision": precision} if precision != "float32" else {}),
            "codes": train.digest,
            "threshold": rule and rule.threshold,
            "patchify": patchify and patchify.model_dump(mode="json"),
            "grid": experiment.grid,
            "precision": cell.training.precision,
        }
        if (names := Classes.of_images(experiment.images, args.classes).names) is not None:
            provenance["classes"] = list(names)
        train_to(
            task,
            until,
            state=args.state,
            output=args.output,
            history=args.history,
            provenance=provenance,
            ranks=here,
            job=job,
            picture=picture,
            restart=args.restart,
        )


if __name__ == "__main__":
    sys.exit(run_command(main))
