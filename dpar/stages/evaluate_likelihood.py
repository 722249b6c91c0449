"""Measures how well a trained model predicts held-out images, in nats per token."""

import sys
from collections.abc import Sequence
from dataclasses import asdict

from dpar.data.codes import open_codes
from dpar.device import default_device
from dpar.errors import run_command
from dpar.files import write_json
from dpar.patches.rule import PatchRule
from dpar.train.distributed import Ranks
from dpar.train.objective import likelihood
from dpar.weights import load_model, model_config, provenance_of
from dpar.workflow import jobs
from dpar.workflow.stage import Stage, flag

STAGE = Stage(
    "evaluate_likelihood",
    __doc__,
    flag("--model-folder"),
    flag("--manifest", "manifest of held-out codes, scored for DPAR"),
    flag("--output", "the numbers as JSON"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage: each model under the patches and in the precision that it was trained with.

    Raises:
        InputError: the model or the codes are damaged, or they were not made for one another.
    """
    run = STAGE.start(argv)
    args, experiment = run.args, run.experiment
    name = jobs.measured_state(args.experiment, args.output, args.model_folder)
    with run.job(
        name,
        inputs=[
            *jobs.model(name, args.model_folder),
            *jobs.codes_of_model(experiment, name.partition("/")[0], "val", args.manifest),
        ],
        outputs=[args.output],
        params={"model": name},
    ) as job:
        described = model_config(args.model_folder)
        origin = provenance_of(args.model_folder, "tokenizer", "entropy_model", "step", "threshold", "precision")
        device = default_device()
        model = load_model(args.model_folder, described["kind"], device)
        codes = open_codes(args.manifest, tokenizer=origin["tokenizer"], entropy_model=origin["entropy_model"])
        rule, precision = PatchRule.of_model(described), origin["precision"]
        found = likelihood(model, codes, rule=rule, precision=precision, ranks=Ranks(device))
        conditions = {name: origin[name] for name in ("step", "threshold", "precision")}
        write_json(args.output, asdict(found) | {"model": described["sha256"], "codes": codes.digest} | conditions)
        print(f"{found.nll:.4f} nats per token on {found.images} held-out images")
        patched = {} if found.mean_patch_length is None else {"patch/mean_length": found.mean_patch_length}
        job.summary({"val/nll": found.nll} | patched)


if __name__ == "__main__":
    sys.exit(run_command(main))
