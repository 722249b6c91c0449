"""Writes the experiment, checked and with every default filled in, for all other stages to read."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from dpar import tracking
from dpar.config import parse_experiment
from dpar.errors import InputError, run_command
from dpar.files import write_json


def parser() -> argparse.ArgumentParser:
    """The flags of this stage."""
    flags = argparse.ArgumentParser(prog="resolve_experiment", description=__doc__)
    flags.add_argument("--values", required=True, help="the experiment as JSON")
    flags.add_argument("--output", type=Path, required=True, help="experiment.json")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage.

    Raises:
        InputError: the values are not JSON or not a valid experiment.
    """
    args = parser().parse_args(argv)
    try:
        values = json.loads(args.values)
    except json.JSONDecodeError as error:
        raise InputError(f"--values is not JSON: {error}") from None
    experiment = parse_experiment(values, "--values")
    write_json(args.output, experiment.model_dump(mode="json"))
    with tracking.job(
        rule="resolve_experiment",
        experiment=args.output,
        name="resolve_experiment",
        inputs=[],
        outputs=[args.output],
        params={"name": experiment.name, "seed": experiment.seed},
    ):
        pass


if __name__ == "__main__":
    sys.exit(run_command(main))
