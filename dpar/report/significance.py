"""Whether rows of a table differ by more than their trainings do: differences paired by seed, tested, corrected."""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from dpar.experiment.cells import Row, described_models, table_rows
from dpar.experiment.settings import Experiment
from dpar.report.tables import with_spread

FEWEST = 3  # trainings of a row, without which there is no test
LEVEL = 0.05


def paired_lines(
    experiment: Experiment,
    name: str,
    metrics: Mapping[tuple[str, int], Mapping[str, Any]],
    likelihoods: Mapping[tuple[str, str], Mapping[str, Any]],
    metric: str,
) -> list[str]:
    """A line for each row of the table `name` on how it differs from the table's model as the experiment describes it.

    Rows are compared with the first such row of their own milestone, training seed by training seed. None, where rows
    have fewer than three trainings.

    Args:
        metrics: (sample cell, seed) -> what compute_metrics wrote.
        likelihoods: (model cell, milestone) -> what evaluate_likelihood wrote.
        metric: what the Frechet distance is called.
    """
    found = []  # row, its baseline, quantity, differences
    for row, baseline in _pairs(experiment, name):
        for quantity, values, measured in (("NLL", _nll, likelihoods), (metric, _distance, metrics)):
            ours, theirs = values(row, measured), values(baseline, measured)
            both = [seed for seed in ours if seed in theirs]
            if len(both) >= FEWEST:
                found.append((row, baseline, quantity, [ours[seed] - theirs[seed] for seed in both]))
    if not found:
        return []
    chances = holm([paired_chance(differences) for *_, differences in found])
    lines = [
        f"Below: differences of a row from the one that it is named with, paired by training seed, mean ± standard "
        f"deviation; p of the two-sided t-test, by Holm's correction over the tests of this table ({len(found)})."
    ]
    texts: dict[str, list[str]] = {}
    for (row, baseline, quantity, differences), chance in zip(found, chances, strict=True):
        alike = len({value > 0 for value in differences}) == 1 and 0 not in differences
        verdict = "holds" if chance < LEVEL else "in direction" if alike else "cannot be told"
        text = f"{quantity} {with_spread(mean(differences), stdev(differences), '+')} (p {chance:.2g}, {verdict})"
        texts.setdefault(f"{_label(row, baseline)} - {_label(baseline, row)}", []).append(text)
    return lines + [f"{pair}: {'; '.join(parts)}" for pair, parts in texts.items()]


def paired_chance(differences: Sequence[float]) -> float:
    """Two-sided p of Student's t-test that the mean of `differences` is 0."""
    average, deviation, count = mean(differences), stdev(differences), len(differences)
    if deviation == 0:
        return float(average == 0)
    return student_tails(average / deviation * math.sqrt(count), count - 1)


def welch_chance(a: tuple[float, float, int], b: tuple[float, float, int]) -> float | None:
    """Two-sided p of Welch's t-test that two means are equal; None where a spread is not known.

    Args:
        a: mean, standard deviation and number of values; degrees of freedom are rounded down.
        b: the same of the other.
    """
    if min(a[2], b[2]) < 2 or math.isnan(a[1]) or math.isnan(b[1]) or math.isnan(a[0] - b[0]):
        return None
    u, v = (deviation**2 / count for _, deviation, count in (a, b))
    if u + v == 0:
        return float(a[0] == b[0])
    degrees = (u + v) ** 2 / (u**2 / (a[2] - 1) + v**2 / (b[2] - 1))
    return student_tails((a[0] - b[0]) / math.sqrt(u + v), int(degrees + 1e-9))


def student_tails(t: float, degrees: int) -> float:
    """Probability that Student's t with `degrees` of freedom lies farther from 0 than `t`, by its finite series."""
    angle = math.atan(abs(t) / math.sqrt(degrees))
    odd = degrees % 2
    term = total = math.cos(angle) if odd else 1.0
    for i in range(2 + odd, degrees, 2):
        term *= (i - 1) / i * math.cos(angle) ** 2
        total += term
    if not odd:
        return max(0.0, 1 - math.sin(angle) * total)
    inside = angle + (math.sin(angle) * total if degrees > 1 else 0.0)
    return max(0.0, 1 - 2 / math.pi * inside)


def holm(chances: Sequence[float]) -> list[float]:
    """p of several tests, corrected by Holm so that one of them errs at most as often as its p says."""
    order = sorted(range(len(chances)), key=lambda i: chances[i])
    corrected, largest = [0.0] * len(chances), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(chances) - rank) * chances[i]))
        corrected[i] = largest
    return corrected


def _pairs(experiment: Experiment, name: str) -> Iterator[tuple[Row, Row]]:
    """Each row with the row that it is compared with."""
    described = described_models(experiment)
    baselines: dict[str, Row] = {}
    rows = table_rows(experiment, name)
    for row in rows:
        if row.model.slug in described and row.sample.patchify == row.model.patchify and not row.sample.gate:
            baselines.setdefault(row.sample.milestone, row)
    for row in rows:
        baseline = baselines.get(row.sample.milestone)
        if baseline is not None and baseline is not row:
            yield row, baseline


def _nll(row: Row, likelihoods: Mapping[Any, Mapping[str, Any]]) -> dict[int, float]:
    """The likelihood of each training of a row, by its seed; none, where sampling alone is changed."""
    if row.sample.patchify != row.model.patchify or row.sample.gate:
        return {}
    states = {model.seed: (s.model, s.milestone) for model, s in zip(row.models, row.samples, strict=True)}
    return {seed: likelihoods[state]["nll"] for seed, state in states.items() if state in likelihoods}


def _distance(row: Row, metrics: Mapping[Any, Mapping[str, Any]]) -> dict[int, float]:
    """The Frechet distance of each training of a row, by its seed: the mean over sampling seeds."""
    found = {}
    for model, sample in zip(row.models, row.samples, strict=True):
        sets = [metrics[key] for i in sample.sampling.seeds if (key := (sample.slug, i)) in metrics]
        if sets:
            found[model.seed] = mean(m["values"]["frechet_distance"] for m in sets)
    return found


def _label(row: Row, other: Row) -> str:
    """A row by its model and by what it has that the other has not."""
    own = [
        f"{key.rpartition('.')[2]} {'none' if value is None else value}"
        for key, value in row.values.items()
        if key != "model" and other.values.get(key, ...) != value
    ]
    state = [row.sample.milestone] if "milestone" in row.values and "milestone" not in " ".join(own) else []
    return ", ".join([row.values["model"], *state, *own])
