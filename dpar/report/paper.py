"""The paper's printed numbers: those of a row of ours, and the rows that it quotes from others."""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from dpar.experiment.cells import PAPER_METRICS, Row
from dpar.experiment.settings import Experiment, Transformer


@cache
def printed() -> Mapping[str, Any]:
    """`paper_tables.yaml`: tables by name, and `patch_lengths`."""
    return yaml.safe_load(files("dpar.report").joinpath("paper_tables.yaml").read_text("utf-8"))


def of_table(name: str | None) -> Mapping[str, Any]:
    """The paper's numbers in a table or figure such as `table4`; empty if it prints none there."""
    return printed().get(name, {}) if name else {}


def numbers(experiment: Experiment, name: str, row: Row) -> dict[str, float]:
    """The paper's numbers for a row of the table `name`: its own `paper.*`, or those printed for its settings."""
    found = of_table(experiment.tables[name].paper)
    for entry in found.get("rows", ()):
        stated = {**found.get("base", {}), **entry}
        settings = {key: value for key, value in stated.items() if key not in PAPER_METRICS}
        if all(_setting(experiment, row, key) == value for key, value in settings.items()) and _is_variant(
            row, settings
        ):
            return {**{key: value for key, value in stated.items() if key in PAPER_METRICS}, **row.paper}
    return row.paper


def quoted(experiment: Experiment, name: str) -> list[dict[str, Any]]:
    """The rows that the paper quotes from others in this table; none if the resolution is not the table's."""
    found = of_table(experiment.tables[name].paper)
    sides = {entry["resolution"] for entry in found.get("rows", ()) if "resolution" in entry}
    return list(found.get("quoted", ())) if experiment.images.resolution in sides else []


def _is_variant(row: Row, settings: Mapping[str, Any]) -> bool:
    """Whether the sizes of the row's model are those of its variant, but for those that `settings` name."""
    transformer = row.model.transformer
    plain = Transformer(variant=transformer.variant).sizes
    return all(transformer.sizes[name] == size for name, size in plain.items() if f"transformer.{name}" not in settings)


def _setting(experiment: Experiment, row: Row, key: str) -> Any:
    """The value that the cells of `row` have for a setting as `paper_tables.yaml` names it."""
    transformer, state = row.model.transformer, row.sample.milestone
    group, _, field = key.partition(".")
    settings: dict[str, Any] = {
        "model": transformer.variant,
        "resolution": experiment.images.resolution,
        "milestone": int(state.removeprefix("epoch")) if state.startswith("epoch") else None,
        "transformer": {**transformer.model_dump(), **transformer.sizes},
        "patchify": row.model.patchify.model_dump(),
        "inference": row.sample.patchify.model_dump(),
        "sampling": row.sample.sampling.model_dump(),
    }
    return settings[group][field] if field else settings[key]
