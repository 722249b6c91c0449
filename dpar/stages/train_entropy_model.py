"""Trains the network whose uncertainty about the next token places the boundaries (Section 3.2.1, Eq. 3), or a gate.

The same command goes on from the last checkpoint in the state folder; SIGTERM, SIGINT and SIGUSR1 save the state and
end the process with status 75, "start me again", which is also the launcher's.
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch

from dpar.data.codes import open_splits
from dpar.errors import InputError, run_command
from dpar.experiment.settings import EntropyModel, Training
from dpar.files import digest
from dpar.model.variants import build_entropy_model, entropy_model_config
from dpar.train.distributed import ranks
from dpar.train.history import HISTORY
from dpar.train.loop import train_to
from dpar.train.task import Task, flat_params
from dpar.workflow import jobs
from dpar.workflow.recipes import recipe_number
from dpar.workflow.stage import NETWORK, RESTART, Run, Stage, flag

STAGE = Stage(
    "train_entropy_model",
    __doc__,
    NETWORK,
    flag("--train", "manifest of training codes, scored for distilling"),
    flag("--val", "manifest of held-out codes, scored for distilling"),
    flag("--state", "folder of checkpoints, kept between calls"),
    flag("--output", "the model folder; the curves lie in it too"),
    RESTART,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage.

    Raises:
        InputError: an unknown network, the experiment imports this network, codes or a state of something else, a loss
            that is not finite, or no space.
        SystemExit: with status 75 after a signal, when the state has been saved.
    """
    run = STAGE.start(argv)
    args, settings = run.args, run.experiment.network(run.args.network)
    if settings.training is None:
        raise InputError(
            f"{args.experiment} imports its {args.network} from {settings.weights}: run import_entropy_model"
        )
    store = "scored" if settings.kind == "distilled" else "codes"
    with (
        ranks() as here,
        run.job(
            None if settings is run.experiment.entropy_model else args.network,
            inputs=jobs.codes(store, "train", args.train) + jobs.codes(store, "val", args.val),
            outputs=[args.output],
            params={"kind": settings.kind, "seed": run.experiment.seed}
            | flat_params(model=settings.model, train=settings.training),
        ) as job,
    ):
        task = task_of(run, settings, settings.training, here.device)
        train_to(
            task,
            task.steps(settings.training.length),
            state=args.state,
            output=args.output,
            history=args.output / HISTORY,
            provenance=provenance(run, task),
            ranks=here,
            job=job,
            restart=args.restart,
        )


def task_of(run: Run, settings: EntropyModel, training: Training, device: torch.device) -> Task:
    """The training: a fresh network and the codes.

    Raises:
        InputError: the codes are of something else.
    """
    experiment, vocab_size = run.experiment, run.experiment.tokenizer.vocab_size
    resolution, num_classes = experiment.images.resolution, experiment.images.num_classes
    train, val = open_splits(run.args.train, run.args.val, resolution=resolution, vocab_size=vocab_size)
    torch.manual_seed(experiment.seed)
    config = entropy_model_config(settings, vocab_size=vocab_size, grid=experiment.grid, num_classes=num_classes)
    return Task(
        model=build_entropy_model(config).to(device),
        training=training,
        train=train,
        val=val,
        patchify=None,
        rule=None,
        seed=experiment.seed,
        recipe=recipe_number("train_entropy_model", "llamagen"),
    )


def provenance(run: Run, task: Task) -> dict[str, Any]:
    """The provenance of the network's folder."""
    experiment, network, made = run.experiment, run.args.network, task.train.metadata
    found: dict[str, Any] = {
        "experiment": digest(experiment.model_dump(mode="json")),
        "tokenizer": made.tokenizer,
        "codes": task.train.digest,
        "grid": experiment.grid,
    }
    if experiment.network(network) is not experiment.entropy_model:
        found["gate"] = network.removeprefix("gates/")
    if task.distilled:
        found["entropy_model"] = made.entropy_model
    return found


if __name__ == "__main__":
    sys.exit(run_command(main))
