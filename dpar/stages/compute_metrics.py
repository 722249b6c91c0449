"""Computes the Frechet distance, KID, Inception Score, precision and recall of one set of samples from its features."""

import math
import sys
from collections.abc import Sequence
from typing import Any

from dpar import tracking
from dpar.errors import run_command
from dpar.evaluation.comparison import Comparison, comparable, compare, metric_name, shared_conditions
from dpar.evaluation.features import Features, load_features
from dpar.files import sha256_file, write_json
from dpar.workflow import jobs
from dpar.workflow.stage import Stage, flag

STAGE = Stage(
    "compute_metrics",
    __doc__,
    flag("--samples", "npz of features of the samples"),
    flag("--reference", "npz of features of the reference"),
    flag("--output", "metrics/CELL/seedN.json"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage."""
    run = STAGE.start(argv)
    args, experiment = run.args, run.experiment
    evaluation = experiment.evaluation
    with run.job(
        f"{args.output.parent.name},{args.output.stem}",
        inputs=[
            *tracking.made_by(f"extract_features[{args.output.parent.name}/{args.output.stem}]", args.samples),
            *tracking.made_by(jobs.REFERENCE, args.reference),
        ],
        outputs=[args.output],
        params={"splits": evaluation.splits, "k": evaluation.k, "seed": experiment.seed},
    ) as job:
        samples, reference = load_features(args.samples), load_features(args.reference)
        split_size = math.ceil(len(samples) / evaluation.splits)
        found = compare(samples, reference, split_size=split_size, k=evaluation.k, seed=experiment.seed)
        for warning in found.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        conditions = shared_conditions(experiment, reference) | {
            "drawn": samples.conditions.get("drawn"),
            "samples_source": samples.conditions.get("source"),
            "samples_digest": samples.conditions.get("source_digest"),
            "samples_sha256": sha256_file(args.samples),
            "reference_sha256": sha256_file(args.reference),
        }
        report = described(samples, reference, found, conditions)
        write_json(args.output, report)
        name, measured = report["metric"], {k: value for k, value in report["values"].items() if value is not None}
        job.summary({f"eval/{key}": value for key, value in measured.items()})
        job.tags({"metric": name, "comparable_to_published": report["comparable_to_published"]})
        print(", ".join(f"{name if k == 'frechet_distance' else k} {v:.4g}" for k, v in measured.items()))


def described(samples: Features, reference: Features, found: Comparison, conditions: dict[str, Any]) -> dict[str, Any]:
    """The metrics, for JSON, with their conditions and whether they compare with published ones."""
    published, reason = comparable(samples, reference, found.conditions)
    return {
        "metric": metric_name(samples),
        "values": found.values | {"steps": samples.conditions.get("steps")},
        "conditions": found.conditions | conditions,
        "warnings": found.warnings,
        "comparable_to_published": published,
        "comparable_reason": reason,
    }


if __name__ == "__main__":
    sys.exit(run_command(main))
