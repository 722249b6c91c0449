"""Prints the JSON schema of experiment files, by which editors complete and check their keys."""

import argparse
import json
from collections.abc import Sequence

from dpar.experiment.settings import Experiment


def parser() -> argparse.ArgumentParser:
    """The options of `dpar schema`: none."""
    return argparse.ArgumentParser(prog="dpar schema", description=__doc__)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints what `config/schema.json` holds."""
    parser().parse_args(argv)
    print(
        json.dumps(
            {"$schema": "https://json-schema.org/draft/2020-12/schema", **Experiment.model_json_schema()}, indent=1
        )
    )
