"""Prints the JSON schema of experiment files, by which editors complete and check their keys."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from dpar.experiment.composing import EXTENDS
from dpar.experiment.settings import Experiment
from dpar.workflow.options import Parser


def parser() -> argparse.ArgumentParser:
    """The options of `dpar schema`: none."""
    return Parser(prog="dpar schema", description=__doc__)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints what `config/schema.json` holds."""
    parser().parse_args(argv)
    print(json.dumps(schema(), indent=1))


def schema() -> dict[str, Any]:
    """The schema of one file, which may lack what a file that it extends says, and leave a part of that away by null.

    Nothing is required of it, therefore: what is missing is said by the program.
    """
    found: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Experiment.model_json_schema(),
    }
    for group in (found, *found["$defs"].values()):
        group.pop("required", None)
        for setting in group.get("properties", {}).values():
            if "$ref" in setting:
                setting["anyOf"] = [{"$ref": setting.pop("$ref")}, {"type": "null"}]
    found["properties"] = {
        EXTENDS: {
            "type": "string",
            "description": "a file below this one, such as config/base/tiny.yaml, from its folder or the checkout",
        },
        **found["properties"],
    }
    return found
