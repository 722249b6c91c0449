"""Imports a published class-conditional LlamaGen, whose null class then stands for "no class" (Eq. 3)."""

import sys
from collections.abc import Sequence
from pathlib import Path

from dpar.errors import InputError, run_command
from dpar.files import digest, sha256_file
from dpar.model.llamagen import LlamaGenConfig
from dpar.model.official import import_llamagen
from dpar.model.variants import model_config
from dpar.train.task import flat_params
from dpar.weights import save_model
from dpar.workflow.stage import NETWORK, Stage, flag

STAGE = Stage("import_entropy_model", __doc__, NETWORK, flag("--output", "the model folder"))


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage.

    Raises:
        InputError: an unknown network, one that the experiment trains, or the file is not what the experiment says it
            is.
    """
    run = STAGE.start(argv)
    args, experiment = run.args, run.experiment
    settings = experiment.network(args.network)
    if settings.weights is None:
        raise InputError(f"{args.experiment} trains its {args.network}: run train_entropy_model, or set `weights`")
    weights, vocab_size = Path(settings.weights).expanduser(), experiment.tokenizer.vocab_size
    # read through its null class, it may know other classes than the images have
    config = model_config(settings.model, vocab_size=vocab_size, grid=experiment.grid, num_classes=None)
    assert isinstance(config, LlamaGenConfig), "an experiment's entropy model is a LlamaGen"
    model = import_llamagen(weights, config, settings.weights_sha256)
    with run.job(
        None if settings is experiment.entropy_model else args.network,
        inputs=[weights],
        outputs=[args.output],
        params={"kind": settings.kind} | flat_params(model=settings.model),
    ):
        provenance = {
            "experiment": digest(experiment.model_dump(mode="json")),
            "weights": {"file": weights.name, "sha256": sha256_file(weights)},
            "grid": experiment.grid,
        }
        if settings is not experiment.entropy_model:
            provenance["gate"] = args.network.removeprefix("gates/")
        save_model(args.output, model, provenance)


if __name__ == "__main__":
    sys.exit(run_command(main))
