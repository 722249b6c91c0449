"""Measures what real images score against other real images at the samples' number: what differences mean nothing."""

import sys
from collections.abc import Sequence

from dpar import tracking
from dpar.errors import run_command
from dpar.evaluation.comparison import metric_name, noise_floor, shared_conditions
from dpar.evaluation.features import load_features
from dpar.files import sha256_file, write_json
from dpar.workflow import jobs
from dpar.workflow.stage import Stage, flag

HALVINGS = 5

STAGE = Stage(
    "measure_noise_floor",
    __doc__,
    flag("--reference", "npz of features of the reference"),
    flag("--output", "metrics/noise_floor.json"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage."""
    run = STAGE.start(argv)
    args, experiment = run.args, run.experiment
    evaluation, wanted = experiment.evaluation, experiment.sampling.num_images
    settings = {"halvings": HALVINGS, "splits": evaluation.splits, "k": evaluation.k, "seed": experiment.seed}
    with run.job(
        inputs=tracking.made_by(jobs.REFERENCE, args.reference),
        outputs=[args.output],
        params={"samples": wanted, **settings},
    ) as job:
        reference = load_features(args.reference)
        size = min(wanted, len(reference) // 2)
        floor = noise_floor(reference, size=size, **settings)
        warnings = []
        if size < wanted:
            warnings.append(
                f"the reference has {len(reference)} images: the noise floor is measured at {size} images per side, "
                f"the samples are {wanted}; it would be lower at that number"
            )
            print(f"warning: {warnings[0]}", file=sys.stderr)
        name = metric_name(reference)
        conditions = shared_conditions(experiment, reference) | {
            "samples": size,
            "reference_samples": size,
            "same_number_as_samples": size == wanted,
            **{key: settings[key] for key in ("halvings", "seed", "splits", "k")},
            "reference_sha256": sha256_file(args.reference),
        }
        write_json(args.output, {"metric": name, **floor, "conditions": conditions, "warnings": warnings})
        job.summary({f"floor/{key}": summary["mean"] for key, summary in floor.items()})
        job.tags({"metric": name})
        print(", ".join(f"{name if k == 'frechet_distance' else k} {v['mean']:.4g}" for k, v in floor.items()))


if __name__ == "__main__":
    sys.exit(run_command(main))
