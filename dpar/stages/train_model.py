"""Trains DPAR (Algorithm 1) or the LlamaGen baseline up to a milestone (Section 4.1).

The state folder makes it one long job in pieces: run again, after a milestone or after any kind of death, the same
command goes on from the last checkpoint. SIGTERM, SIGINT and SIGUSR1 save the state and end the process with status 75,
"start me again", which is also the launcher's.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from dpar import tracking
from dpar.data.classes import Classes
from dpar.data.codes import open_splits
from dpar.data.shards import CodeMetadata
from dpar.errors import InputError, run_command
from dpar.experiment.cells import ModelCell, merged_thresholds, model_cells
from dpar.experiment.settings import Experiment
from dpar.model.variants import build_model
from dpar.patches.rule import PatchRule
from dpar.sampling.preview import previewer
from dpar.tracking.makers import Wanted
from dpar.train.distributed import ranks
from dpar.train.loop import train_to
from dpar.train.task import Task, flat_params
from dpar.weights import model_config
from dpar.workflow import jobs
from dpar.workflow.recipes import recipe_number
from dpar.workflow.stage import RESTART, THRESHOLDS, Run, Stage, flag

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
    cell = cell_of(experiment, args.model, args.milestone)
    patchify = cell.patchify if cell.transformer.is_dpar else None
    entropy_model = args.entropy_model if args.tokenizer and patchify and patchify.is_dynamic else None
    with (
        ranks() as here,
        run.job(
            f"{args.model}/{args.milestone}",
            inputs=inputs(run, cell, entropy_model),
            outputs=[args.output, args.history],
            params={"model": args.model, "milestone": args.milestone, "seed": cell.seed}
            | flat_params(model=cell.transformer, patch=patchify, train=cell.training),
        ) as job,
    ):
        task = task_of(run, cell, entropy_model, here.device)
        picture = preview(run, task, entropy_model) if args.tokenizer and here.main else None
        train_to(
            task,
            task.steps(int(args.milestone.removeprefix(cell.training.unit))),
            state=args.state,
            output=args.output,
            history=args.history,
            provenance=provenance(run, task),
            ranks=here,
            job=job,
            picture=picture,
            restart=args.restart,
        )


def cell_of(experiment: Experiment, model: str, milestone: str) -> ModelCell:
    """The model cell of that name.

    Raises:
        InputError: the experiment has none, or it does not keep that milestone.
    """
    cells = model_cells(experiment)
    if model not in cells:
        raise InputError(f"--model {model}: there is no such model; this experiment has {', '.join(cells)}")
    if milestone not in cells[model].milestones:
        raise InputError(f"--milestone {milestone}: {model} keeps {', '.join(cells[model].milestones)}")
    return cells[model]


def inputs(run: Run, cell: ModelCell, entropy_model: Path | None) -> list[Wanted]:
    """All that is read; the entropy model only where samples of checkpoints are drawn with it."""
    args, experiment = run.args, run.experiment
    before = cell.milestones[: cell.milestones.index(args.milestone)]
    return [
        *jobs.codes_of_model(experiment, args.model, "train", args.train),
        *jobs.codes_of_model(experiment, args.model, "val", args.val),
        *jobs.class_names(args.classes),
        *jobs.thresholds(experiment, args.thresholds),
        *(jobs.tokenizer(args.tokenizer) if args.tokenizer else []),
        *(jobs.network("entropy_model", entropy_model) if entropy_model else []),
        *tracking.made_by(tuple(f"train_model[{args.model}/{name}]" for name in before), *args.previous, stated=False),
    ]


def task_of(run: Run, cell: ModelCell, entropy_model: Path | None, device: torch.device) -> Task:
    """The training: a fresh network, the codes, and where patches begin.

    Raises:
        InputError: the codes are of something else than the experiment, or than the networks that samples of
            checkpoints are to be drawn with, or the threshold is not calibrated.
    """
    args, experiment = run.args, run.experiment
    vocab_size = experiment.tokenizer.vocab_size
    train, val = open_splits(args.train, args.val, resolution=experiment.images.resolution, vocab_size=vocab_size)
    check_makers(args, train.metadata, entropy_model)
    patchify, thresholds = cell.patchify if cell.transformer.is_dpar else None, merged_thresholds(args.thresholds)
    torch.manual_seed(cell.seed)
    model = build_model(
        cell.transformer, vocab_size=vocab_size, grid=experiment.grid, num_classes=experiment.images.num_classes
    )
    return Task(
        model=model.to(device),
        training=cell.training,
        train=train,
        val=val,
        patchify=patchify,
        rule=patchify and PatchRule.calibrated(patchify, thresholds, experiment.grid[1]),
        seed=cell.seed,
        recipe=recipe_number("train_model", cell.transformer.sizes["architecture"]),
    )


def preview(run: Run, task: Task, entropy_model: Path | None) -> Callable[[Any], bytes]:
    """The function that draws the samples of a checkpoint."""
    return previewer(
        run.args.tokenizer,
        entropy_model,
        rule=task.rule,
        sampling=run.experiment.sampling,
        seed=run.experiment.seed,
        entropy_precision=task.train.metadata.entropy_precision,
    )


def check_makers(args: argparse.Namespace, codes: CodeMetadata, entropy_model: Path | None) -> None:
    """Refuses a tokenizer or an entropy model that samples are to be drawn with and that did not make the codes."""
    for folder, expected in ((args.tokenizer, codes.tokenizer), (entropy_model, codes.entropy_model)):
        if folder is not None and (found := model_config(folder)["sha256"]) != expected:
            raise InputError(
                f"{folder} (sha256 {found[:12]}...) is not what made {args.train} ({str(expected)[:12]}...); "
                "give the folders of one experiment"
            )


def provenance(run: Run, task: Task) -> dict[str, Any]:
    """The provenance of the model folder."""
    experiment, made = run.experiment, task.train.metadata
    found: dict[str, Any] = {
        "tokenizer": made.tokenizer,
        "entropy_model": made.entropy_model,
        **({"entropy_precision": made.entropy_precision} if made.entropy_precision != "float32" else {}),
        "codes": task.train.digest,
        "threshold": task.rule and task.rule.threshold,
        "patchify": task.patchify and task.patchify.model_dump(mode="json"),
        "grid": experiment.grid,
        "precision": task.training.precision,
    }
    if (names := Classes.of_images(experiment.images, run.args.classes).names) is not None:
        found["classes"] = list(names)
    return found


if __name__ == "__main__":
    sys.exit(run_command(main))
