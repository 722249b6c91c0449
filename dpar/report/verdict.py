"""Verdicts in words on the numbers of the tables: better, worse or a tie, by how much, and at which cost."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool

from dpar.experiment.cells import described_models
from dpar.experiment.settings import Experiment
from dpar.report.labels import label
from dpar.report.significance import LEVEL, welch_chance
from dpar.report.tables import MADE, best_rows, repeated, with_spread


class Measured(NamedTuple):
    """Mean of a quantity, its standard deviation (NaN if it is of a single value), and of how many values."""

    mean: float
    sd: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.4g}" if np.isnan(self.sd) else with_spread(self.mean, self.sd)


def verdict(experiment: Experiment, tables: Mapping[str, pd.DataFrame], metric: str) -> list[str]:
    """A paragraph on each of the experiment's DPARs against the LlamaGen of its size, and on each of its grids.

    Args:
        tables: the rows of each table, as `tables.read_table` reads them.
        metric: what the Frechet distance is called.
    """
    made = {name: _made(frame) for name, frame in tables.items()}
    paragraphs = [" ".join(_compared(experiment, *pair, metric)) for pair in _pairs(experiment, list(made.values()))]
    for name, frame in made.items():
        if experiment.tables[name].is_grid and len(frame) > 1:
            paragraphs.append(_best(experiment, name, frame, metric))
    return paragraphs


def ties(frame: pd.DataFrame) -> Bool[np.ndarray, "N"]:
    """The rows, other than the best, whose Frechet distance cannot be told from the smallest; none without spreads."""
    values = [_measured(row, "frechet_distance") for row in _records(frame)]
    means = np.array([value.mean for value in values])
    if np.isnan(means).all():
        return np.zeros(len(values), bool)
    best = int(np.nanargmin(means))
    chances = [None if i == best else welch_chance(value, values[best]) for i, value in enumerate(values)]
    return np.array([chance is not None and chance >= LEVEL for chance in chances])


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def _made(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows that were made here and measured."""
    own = frame.loc[frame["source"] == MADE] if "source" in frame else frame
    return own.dropna(subset=["frechet_distance"]).reset_index(drop=True)


def _pairs(experiment: Experiment, frames: Sequence[pd.DataFrame]) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """The row of each DPAR, as the experiment describes it, with that of the LlamaGen of its size."""
    if not frames:
        return []
    cells = pd.concat(frames, ignore_index=True).drop_duplicates("cell")
    rows = best_rows(cells, described_models(experiment))
    found: dict[bool, dict[str, Mapping[str, Any]]] = {True: {}, False: {}}
    for row in _records(rows):
        model = experiment.models[row["model"]]
        found[model.is_dpar][re.sub(r"^(dpar|llamagen)\W*", "", row["model"].lower())] = row
    dpars, baselines = found[True], found[False]
    if len(dpars) == len(baselines) == 1:
        return [(next(iter(dpars.values())), next(iter(baselines.values())))]
    return [(row, baselines[size]) for size, row in dpars.items() if size in baselines]


def _compared(experiment: Experiment, ours: Mapping[str, Any], theirs: Mapping[str, Any], metric: str) -> list[str]:
    """The differences of a DPAR from its baseline: in quality, in likelihood, and in cost."""
    a, b = _measured(ours, "frechet_distance"), _measured(theirs, "frechet_distance")
    chance, lower = welch_chance(a, b), a.mean < b.mean
    if chance is None:
        word, why = (
            f"has the {'lower' if lower else 'higher'} {metric} of",
            "one value each, so that no spread is known",
        )
        first = (
            f"Of {ours['model']} and {theirs['model']}, the former {word.removesuffix(' of')}: {a} against {b} ({why})."
        )
    else:
        spread = f"their spread over {a.count} {repeated(experiment)}"
        if chance >= LEVEL:
            word, why = "cannot be told from", f"a difference within {spread}"
        else:
            word, why = f"is {'better' if lower else 'worse'} than", f"a difference beyond {spread}"
        first = f"{ours['model']} {word} {theirs['model']}: {metric} {a} against {b}, {why} (p = {chance:.2g})."
    parts = [first]
    likelihoods = [_measured(row, "nll") for row in (ours, theirs)]
    if not any(np.isnan(value.mean) for value in likelihoods):
        parts.append(_likelihood(*likelihoods))
    if costs := _costs(ours, theirs):
        parts.append(costs)
    if chance is not None and len(experiment.training_seeds) <= 1:
        parts.append("Each was trained once: what another training would change is not in the spread.")
    return parts


def _likelihood(a: Measured, b: Measured) -> str:
    chance = welch_chance(a, b)
    word = "better" if a.mean < b.mean else "worse" if a.mean > b.mean else "equal"
    if chance is not None and chance >= LEVEL:
        word = "not told apart"
    return f"Its likelihood of held-out images is {word}: {a} against {b} nats per token."


def _costs(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Cost of a DPAR compared with its baseline, and the length of its patches."""
    said = []
    for name, what in (("training_gmacs", "training"), ("sampling_gmacs", "sampling")):
        a, b = ours.get(name), theirs.get(name)
        if a is None or b is None or pd.isna(a) or pd.isna(b) or not b:
            continue
        change = a / b - 1
        more = (
            "as much"
            if abs(change) < 0.005
            else f"{abs(change):.0%} {'more' if change > 0 else 'less'}".replace("%", " %")
        )
        said.append(f"{what} costs {more} ({a:.4g} against {b:.4g} GMACs per image)")
    length = ours.get("patch_length")
    merged = "" if length is None or pd.isna(length) else f"With {length:.4g} tokens per patch, "
    text = merged + ", ".join(said)
    return f"{text[:1].upper()}{text[1:]}." if said else ""


def _best(experiment: Experiment, name: str, frame: pd.DataFrame, metric: str) -> str:
    """The best row of a grid, and how many others cannot be told from it."""
    place = int(frame["frechet_distance"].to_numpy().argmin())
    row, tied = _records(frame)[place], int(ties(frame).sum())
    where = re.sub(r"[${}]", "", label(list(experiment.tables[name].vary), frame, place))
    rest = len(frame) - 1
    others = f"{tied} of the other {rest} cannot be told from it"
    if not tied:
        others = "each of the others is larger by more than their spread"
    elif tied == rest:
        others = f"none of the other {rest} can be told from it"
    if np.isnan(_measured(row, "frechet_distance").sd):
        others = "one value each, so that no spread is known"
    value = _measured(row, "frechet_distance")
    return f"Of the rows of “{experiment.tables[name].title}”, {where} has the smallest {metric}, {value}; {others}."


def _measured(row: Mapping[str, Any], name: str) -> Measured:
    """A quantity of a row, of as many values as the table says it is the mean of."""
    sd = row.get(f"{name}_sd", np.nan)
    count = row.get("trainings", np.nan)
    count = row.get("seeds", 1) if pd.isna(count) else count
    mean = row.get(name)
    return Measured(np.nan if mean is None else float(mean), np.nan if sd is None else float(sd), int(count or 1))
