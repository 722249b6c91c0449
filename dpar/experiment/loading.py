"""Experiments from YAML and JSON files, checked, with every refusal in one line."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from dpar.errors import InputError
from dpar.experiment.settings import Experiment
from dpar.files import read_json

MOST_VALUES = 100_000  # of an experiment, with what its aliases stand for


def parse_experiment(values: Any, where: str) -> Experiment:
    """The experiment that `values` describe.

    Raises:
        InputError: naming each key that is unknown, missing or contradicts another.
    """
    _check_size(values, where)
    try:
        return Experiment.model_validate(values)
    except ValidationError as error:
        problems = "".join(f"\n  {line}" for line in refusals(error))
        raise InputError(f"{where} is not a valid experiment:{problems}") from None


def refusals(error: ValidationError) -> list[str]:
    """Refused settings, one line each: the key, the allowed values, and the value found if it is short."""
    lines = []
    for each in error.errors():
        given = each["input"]
        found = f", found {given!r:.80}" if isinstance(given, str | int | float) else ""
        lines.append(f"{'.'.join(map(str, each['loc'])) or '(top level)'}: {each['msg']}{found}")
    return lines


def _check_size(values: Any, where: str) -> None:
    """Counts the values of a file; nested aliases can make a short one larger than any memory."""
    left, count = [values], 0
    while left:
        value = left.pop()
        count += 1
        if count > MOST_VALUES:
            raise InputError(
                f"{where} holds more than {MOST_VALUES:,} values, counting what its aliases stand for; "
                "an experiment has a few hundred: write out what is meant"
            )
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list | tuple | set):
            left += value


class _Loader(yaml.SafeLoader):
    """YAML without code, in which a duplicate key is an error: the first value would be lost silently."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.MarkedYAMLError(None, None, f"the key {key.value!r} is there twice", key.start_mark)
                seen.add(key.value)
        return node


def read_yaml(path: str | Path) -> Any:
    """Contents of a YAML file in UTF-8, whatever the locale.

    Raises:
        InputError: the file is missing or is not YAML, has a tag that is more than data, or a key twice.
    """
    try:
        return yaml.load(Path(path).read_bytes(), _Loader)  # a subclass of the safe loader
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; experiments lie in config/") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; give the file of an experiment, such as config/demo.yaml") from None
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # the latter: numbers, dates and depths beyond Python's
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not YAML in UTF-8: {reason}; correct it there") from None


def load_experiment(path: str | Path) -> Experiment:
    """The experiment in a YAML (or resolved JSON) file.

    Raises:
        InputError: the file is missing, is not YAML, or `parse_experiment` refuses it.
    """
    path = Path(path)
    if path.suffix == ".json":
        return parse_experiment(read_json(path), str(path))
    return parse_experiment(read_yaml(path), str(path))
