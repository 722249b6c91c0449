"""Experiments from YAML and JSON files, checked, with every refusal in one line."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from dpar.errors import InputError, did_you_mean
from dpar.experiment.composing import CHANGES, Places, compose
from dpar.experiment.reading import check_size
from dpar.experiment.settings import SMOKE_SUFFIX, Experiment
from dpar.files import read_json

Place = Callable[[Sequence[str | int]], str | None]
"""The place where a setting is written, such as `config/demo.yaml:12`; None where that is not known."""


def parse_experiment(values: Any, where: str, place: Place | None = None) -> Experiment:
    """The experiment that `values` describe.

    Args:
        place: where each setting is written, for the messages.

    Raises:
        InputError: naming each key that is unknown, missing or contradicts another.
    """
    check_size(values, where)
    try:
        return Experiment.model_validate(values)
    except ValidationError as error:
        problems = "".join(f"\n  {line}" for line in refusals(error, Experiment, place))
        raise InputError(f"{where} is not a valid experiment:{problems}") from None


def refusals(error: ValidationError, model: type[BaseModel] | None = None, place: Place | None = None) -> list[str]:
    """Refused settings, one line each: the place, the key, the allowed values, and the value found if it is short.

    Args:
        model: whose settings they are, by which a key with a typo is known.
        place: where a setting is written.
    """
    lines = []
    for each in error.errors():
        given, key = each["input"], each["loc"]
        found = f", found {given!r:.80}" if isinstance(given, str | int | float) else ""
        said, near = _in_words(each, model)
        said = f"{'.'.join(map(str, key)) or '(top level)'}: {said}{found}{near}"
        at = place(key) if place else None
        lines.append(f"{at}: {said}" if at else said)
    return lines


_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a finite number",
    "bool": "true or false",
    "string_type": "text",
    "model": "settings by name",
    "dict": "settings by name",
    "tuple": "a list, as [a, b]",
    "list": "a list, as [a, b]",
    "greater_than": "a number greater than {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number less than {lt}",
    "less_than_equal": "a number of at most {le}",
    "too_short": "at least {min_length} of them",
    "string_pattern_mismatch": "text that matches {pattern}",
    "literal_error": "{expected}",
}


def _in_words(refused: Any, model: type[BaseModel] | None) -> tuple[str, str]:
    """One of pydantic's errors in the words of a file's author, and what may have been meant."""
    kind, context, key = refused["type"], refused.get("ctx", {}), refused["loc"]
    if kind == "extra_forbidden":
        return "there is no such setting", did_you_mean(str(key[-1]), _fields(model, key[:-1]))
    if kind == "missing":
        return "missing", ""
    if kind == "value_error":
        return str(context["error"]), ""
    names = [name for name in _EXPECTED if kind == name or kind.startswith(f"{name}_")]
    if not names:
        return str(refused["msg"]).replace("Input should be", "expected"), ""
    said = "expected " + _EXPECTED[max(names, key=len)].format(**context)
    allowed = re.findall(r"'([^']+)'", said) if kind == "literal_error" else []
    return said, did_you_mean(str(refused["input"]), allowed)


def _fields(model: Any, key: Sequence[str | int]) -> list[str]:
    """The settings of the group `key` of `model`."""
    for name in key:
        fields = model.model_fields if isinstance(model, type) and issubclass(model, BaseModel) else {}
        inside = [fields[str(name)].annotation] if str(name) in fields else [model] if not fields else []
        while inside and not (isinstance(inside[0], type) and issubclass(inside[0], BaseModel)):
            inside = [*inside[1:], *get_args(inside[0])]
        if not inside:
            return []
        model = inside[0]
    return list(getattr(model, "model_fields", ()))


def load_experiment(path: str | Path) -> Experiment:
    """The experiment in a YAML (or resolved JSON) file, with what it extends.

    Raises:
        InputError: the file is missing, is not YAML, or `parse_experiment` refuses it.
    """
    path = Path(path)
    if path.suffix == ".json":
        return parse_experiment(read_json(path), str(path))
    return compose_experiment([path])[0]


def compose_experiment(
    files: Sequence[str | Path], changes: Sequence[str] = (), config: Mapping[str, Any] | None = None
) -> tuple[Experiment, Places]:
    """The experiment that `compose` gives, and where each of its settings is written.

    Raises:
        InputError: as `compose`, or as `parse_experiment`; or somebody calls it as a smoke of another is called.
    """
    values, places = compose(files, changes, config)
    named = [*map(str, files), *(["--config"] if set(config or ()) - {CHANGES} else [])]
    named += ["--set"] * bool(changes or (config or {}).get(CHANGES))
    experiment = parse_experiment(values, " + ".join(named) or "the configuration", places.of)
    where = next((source.where for source in places.sources if "name" in source.values), "")
    if experiment.is_smoke and not where.endswith(".json"):  # the settings that a smoke has left
        whole = experiment.name.removesuffix(SMOKE_SUFFIX)
        raise InputError(
            f"{places.of(['name'])}: name: {experiment.name} is the name that --smoke gives to a trial of {whole}, "
            "whose numbers say nothing; choose another name, and give --smoke for a trial"
        )
    return experiment, places
