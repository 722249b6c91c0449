"""YAML without code: values of a file in UTF-8, and the line of each."""

import re
from pathlib import Path
from typing import Any

import yaml

from dpar.errors import InputError

MOST_VALUES = 100_000  # of an experiment, with what its aliases stand for


def check_size(values: Any, where: str) -> None:
    """Counts the values of a file; nested aliases can make a short one larger than any memory.

    Raises:
        InputError: there are more than an experiment can have.
    """
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
    """YAML without code, in which a duplicate key is an error: the first value would be lost silently.

    Numbers are decimal: 010, which YAML 1.1 takes for 8, and 1:30, which it takes for 90, are refused.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.MarkedYAMLError(None, None, f"the key {key.value!r} is there twice", key.start_mark)
                seen.add(key.value)
        return node


def _decimal(loader: _Loader, node: yaml.ScalarNode) -> int | float:
    """A number that is what its digits say, or in base 16 or 2 as its prefix says."""
    if re.match(r"[-+]?0[0-7_]+$|.*:", node.value):
        found = f"{node.value} is a number in base {60 if ':' in node.value else 8} to YAML"
        raise yaml.MarkedYAMLError(None, None, f"{found}: write it in base 10, or text in quotes", node.start_mark)
    whole = node.tag == "tag:yaml.org,2002:int"
    return loader.construct_yaml_int(node) if whole else loader.construct_yaml_float(node)


for _tag in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _decimal)


def read_yaml(path: str | Path) -> Any:
    """Contents of a YAML file in UTF-8, whatever the locale.

    Raises:
        InputError: the file is missing or is not YAML, has a tag that is more than data, or a key twice.
    """
    return read_node(path)[0]


def read_node(path: str | Path) -> tuple[Any, yaml.Node | None]:
    """The contents of a YAML file as `read_yaml`, and the tree that says the line of each.

    Raises:
        InputError: as `read_yaml`.
    """
    try:
        return _loaded(Path(path).read_bytes(), str(path))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; experiments lie in config/") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; give the file of an experiment, such as config/demo.yaml") from None


def read_value(text: str, where: str) -> Any:
    """A value as a YAML file would have it.

    Raises:
        InputError: it is no YAML.
    """
    return _loaded(text.encode(), where)[0]


def _loaded(data: bytes, where: str) -> tuple[Any, yaml.Node | None]:
    try:
        loader = _Loader(data)  # a subclass of the safe loader
        try:
            node = loader.get_single_node()
            return (None if node is None else loader.construct_document(node)), node
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # the latter: values and depths beyond Python's
        reason = " ".join(str(error).split())
        raise InputError(f"{where} is not YAML in UTF-8: {reason}; correct it there") from None
