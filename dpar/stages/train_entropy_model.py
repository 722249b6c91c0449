"""Trains the network whose uncertainty about the next token places the boundaries (Section 3.2.1, Eq. 3), or a gate.

The same command goes on from the last checkpoint in the state folder; SIGTERM, SIGINT and SIGUSR1 save the state and
end the process with status 75, "start me again", which is also the launcher's.
"""

import sys
from collections.abc import Sequence

import torch

from dpar.data.codes import open_codes
from dpar.data.loader import steps_per_epoch
from dpar.errors import InputError, run_command
from dpar.files import digest
from dpar.model.variants import build_entropy_model, entropy_model_config
from dpar.train.distributed import ranks
from dpar.train.history import HISTORY
from dpar.train.loop import Task, flat_params, train_to
from dpar.workflow import jobs
from dpar.workflow.recipes import recipe_number
from dpar.workflow.stage import NETWORK, RESTART, Stage, flag

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
    args, experiment = run.args, run.experiment
    settings = experiment.network(args.network)
    if settings.training is None:
        raise InputError(
            f"{args.experiment} imports its {args.network} from {settings.weights}: run import_entropy_model"
        )
    store = "scored" if settings.kind == "distilled" else "codes"
    with (
        ranks() as here,
        run.job(
            None if settings is experiment.entropy_model else args.network,
            inputs=jobs.codes(store, "train", args.train) + jobs.codes(store, "val", args.val),
            outputs=[args.output],
            params={"kind": settings.kind, "seed": experiment.seed}
            | flat_params(model=settings.model, train=settings.training),
        ) as job,
    ):
        vocab_size, resolution = experiment.tokenizer.vocab_size, experiment.images.resolution
        train = open_codes(args.train, resolution=resolution, vocab_size=vocab_size)
        tokenizer, teacher = train.metadata.tokenizer, train.metadata.entropy_model
        val = open_codes(args.val, resolution=resolution, tokenizer=tokenizer, entropy_model=teacher)
        torch.manual_seed(experiment.seed)
        config = entropy_model_config(
            settings, vocab_size=vocab_size, grid=experiment.grid, num_classes=experiment.images.num_classes
        )
        model = build_entropy_model(config)
        task = Task(
            model=model.to(here.device),
            training=settings.training,
            train=train,
            val=val,
            patchify=None,
            rule=None,
            seed=experiment.seed,
            recipe=recipe_number("train_entropy_model", "llamagen"),
        )
        until = settings.training.length
        if settings.training.unit == "epoch":
            until *= steps_per_epoch(train, settings.training.batch_size)
        provenance = {
            "experiment": digest(experiment.model_dump(mode="json")),
            "tokenizer": tokenizer,
            "codes": train.digest,
            "grid": experiment.grid,
        }
        if settings is not experiment.entropy_model:
            provenance["gate"] = args.network.removeprefix("gates/")
        if task.distilled:
            provenance["entropy_model"] = teacher
        train_to(
            task,
            until,
            state=args.state,
            output=args.output,
            history=args.output / HISTORY,
            provenance=provenance,
            ranks=here,
            job=job,
            restart=args.restart,
        )


if __name__ == "__main__":
    sys.exit(run_command(main))
