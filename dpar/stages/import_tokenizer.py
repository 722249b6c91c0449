"""Turns an official file of LlamaGen's VQ tokenizer into a tokenizer of ours (Section 3.1)."""

import sys
from collections.abc import Sequence
from pathlib import Path

from dpar.errors import InputError, run_command
from dpar.files import digest, sha256_file
from dpar.tokenizer.official import import_tokenizer
from dpar.weights import save_model
from dpar.workflow.stage import Stage, flag

STAGE = Stage("import_tokenizer", __doc__, flag("--output", "folder of the tokenizer"))


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage.

    Raises:
        InputError: the experiment trains its tokenizer, or the file of `tokenizer.weights` cannot be used.
    """
    run = STAGE.start(argv)
    args, experiment = run.args, run.experiment
    if experiment.tokenizer.weights is None:
        raise InputError(
            f"{args.experiment} trains its tokenizer; run train_tokenizer, "
            "or give `tokenizer.weights`, such as vq_ds16_c2i.pt, in place of `tokenizer.training`"
        )
    weights, sizes = Path(experiment.tokenizer.weights).expanduser(), experiment.tokenizer.autoencoder
    model = import_tokenizer(weights, sizes, experiment.tokenizer.weights_sha256)
    with run.job(
        inputs=[weights],
        outputs=[args.output],
        params={f"model.{name}": value for name, value in sizes.model_dump(mode="json").items()},
    ) as job:
        job.summary({"model/parameters": sum(parameter.numel() for parameter in model.parameters())})
        provenance = {
            "experiment": digest(experiment.model_dump(mode="json")),
            "weights": weights.name,
            "weights_sha256": sha256_file(weights),
        }
        save_model(args.output, model, provenance)


if __name__ == "__main__":
    sys.exit(run_command(main))
