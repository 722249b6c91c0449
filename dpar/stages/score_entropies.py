"""Adds to each token of a shard how uncertain the entropy model was about it, in nats (Eq. 3)."""

import sys
import time
from collections.abc import Sequence

import numpy as np

from dpar import tracking
from dpar.data.shards import CodeRows, read_shard, write_shard
from dpar.device import default_device
from dpar.errors import run_command
from dpar.model.entropy import computed_precision
from dpar.train.scoring import scored
from dpar.weights import model_config
from dpar.workflow import jobs
from dpar.workflow.stage import Stage, flag

STAGE = Stage(
    "score_entropies",
    __doc__,
    flag("--shard", "a shard of codes"),
    flag("--entropy-model", "folder of the entropy model"),
    flag("--output", "the same shard with entropies, .parquet or .tar"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage.

    Raises:
        InputError: the shard or the model is damaged, or they were not made for one another.
    """
    run = STAGE.start(argv)
    args, experiment = run.args, run.experiment
    settings = experiment.entropy_model
    with run.job(
        f"{args.output.parent.name}-{args.output.stem}",
        inputs=[
            *tracking.made_by(f"encode_images[{args.output.parent.name}-{args.output.stem}]", args.shard),
            *jobs.network("entropy_model", args.entropy_model),
        ],
        outputs=[args.output],
        params={"kind": settings.kind, "shard": args.output.stem},
    ) as job:
        rows = read_shard(args.shard)
        turn = int(rows.images[0]) // rows.num_images  # shards are equally large
        start = time.monotonic()
        device = default_device(turn)
        entropy = scored(args.entropy_model, settings, rows.tokens, rows.metadata, args.shard, device)
        precision = computed_precision(settings.precision, device)
        sha256 = model_config(args.entropy_model)["sha256"]
        metadata = rows.metadata.model_copy(update={"entropy_model": sha256, "entropy_precision": precision})
        write_shard(args.output, CodeRows(**vars(rows) | {"entropy": entropy, "metadata": metadata}))
        job.summary(
            {
                "entropy/mean": entropy[:, 1:].mean(),
                "entropy/p10": np.quantile(entropy[:, 1:], 0.1),
                "entropy/p90": np.quantile(entropy[:, 1:], 0.9),
                "perf/tokens_per_s": rows.tokens.size / (time.monotonic() - start),
            }
        )


if __name__ == "__main__":
    sys.exit(run_command(main))
