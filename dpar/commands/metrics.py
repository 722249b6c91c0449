"""Distances and scores of stored features: `dpar metrics --samples A.npy --reference B.npy`."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dpar.errors import InputError
from dpar.evaluation.comparison import compare
from dpar.evaluation.features import load_features, load_logits
from dpar.tracking.makers import check_recorded
from dpar.workflow.options import COUNT, Parser

# what is printed -> what it is called in the files of the pipeline
NAMES = {
    "fd": "frechet_distance",
    "kid": "kernel_distance",
    "precision": "precision",
    "recall": "recall",
    "inception_score": "inception_score",
}


def parser() -> argparse.ArgumentParser:
    """The flags of this command."""
    flags = Parser(prog="dpar metrics", description=__doc__)
    kinds = "features: .npy of shape (N, D), or .npz of the stage extract_features"
    flags.add_argument("--samples", type=Path, required=True, help=kinds)
    flags.add_argument("--reference", type=Path, required=True, help=kinds)
    flags.add_argument("--logits", type=Path, help="class scores of the samples, .npy of shape (N, C)")
    flags.add_argument(
        "--split-size", type=COUNT, default=5000, help="images per split of the Inception Score, in file order"
    )
    flags.add_argument("--json", action="store_true", help="print JSON")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    args = parser().parse_args(argv)
    check_recorded(args.samples, args.reference, *filter(None, [args.logits]))
    samples, reference = load_features(args.samples), load_features(args.reference)
    if args.logits is not None:
        logits = load_logits(args.logits)
        if len(logits) != len(samples):
            raise InputError(
                f"{args.logits} has {len(logits)} rows and {args.samples} {len(samples)}; "
                "expected a row an image in both, in the same order"
            )
        samples = replace(samples, logits=logits)
    found = compare(samples, reference, split_size=args.split_size, shuffle=False)
    values = {name: found.values[own] for name, own in NAMES.items()}
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if args.json:
        print(json.dumps(values | {"conditions": found.conditions, "warnings": found.warnings}, indent=2))
        return
    for name, value in values.items():
        print(f"{name:16} {'not measured: give --logits' if value is None else format(value, '.6g')}")
