"""Computes the Frechet distance, KID, Inception Score, precision and recall of one set of samples from its features."""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from dpar import tracking
from dpar.errors import run_command
from dpar.evaluation.comparison import comparable, compare, metric_name, shared_conditions
from dpar.evaluation.features import load_features
from dpar.experiment.loading import load_experiment
from dpar.files import sha256_file, write_json
from dpar.workflow import jobs


def parser() -> argparse.ArgumentParser:
    """The flags of this stage."""
    flags = argparse.ArgumentParser(prog="compute_metrics", description=__doc__)
    flags.add_argument("--experiment", type=Path, required=True)
    flags.add_argument("--samples", type=Path, required=True, help="npz of features of the samples")
    flags.add_argument("--reference", type=Path, required=True, help="npz of features of the reference")
    flags.add_argument("--output", type=Path, required=True, help="metrics/CELL/seedN.json")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage."""
    args = parser().parse_args(argv)
    experiment = load_experiment(args.experiment)
    evaluation = experiment.evaluation
    with tracking.job(
        rule="compute_metrics",
        experiment=args.experiment,
        name=f"compute_metrics[{args.output.parent.name},{args.output.stem}]",
        inputs=[
            *tracking.made_by(f"extract_features[{args.output.parent.name}/{args.output.stem}]", args.samples),
            *tracking.made_by(jobs.REFERENCE, args.reference),
        ],
        outputs=[args.output],
        params={"splits": evaluation.splits, "k": evaluation.k, "seed": experiment.seed},
    ) as job:
        samples, reference = load_features(args.samples), load_features(args.reference)
        found = compare(
            samples,
            reference,
            split_size=math.ceil(len(samples) / evaluation.splits),
            k=evaluation.k,
            seed=experiment.seed,
        )
        for warning in found.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        published, reason = comparable(samples, reference, found.conditions)
        name = metric_name(samples)
        values = found.values | {"steps": samples.conditions.get("steps")}
        write_json(
            args.output,
            {
                "metric": name,
                "values": values,
                "conditions": found.conditions
                | shared_conditions(experiment, reference)
                | {
                    "drawn": samples.conditions.get("drawn"),
                    "samples_source": samples.conditions.get("source"),
                    "samples_digest": samples.conditions.get("source_digest"),
                    "samples_sha256": sha256_file(args.samples),
                    "reference_sha256": sha256_file(args.reference),
                },
                "warnings": found.warnings,
                "comparable_to_published": published,
                "comparable_reason": reason,
            },
        )
        measured = {key: value for key, value in values.items() if value is not None}
        job.summary({f"eval/{key}": value for key, value in measured.items()})
        job.tags({"metric": name, "comparable_to_published": published})
        print(", ".join(f"{name if k == 'frechet_distance' else k} {v:.4g}" for k, v in measured.items()))


if __name__ == "__main__":
    sys.exit(run_command(main))
