"""Tables: one row per cell, ours next to the paper's, with the conditions of every number."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pandas as pd

from dpar.evaluation import cost
from dpar.experiment.cells import Row, table_rows, threshold_of
from dpar.experiment.settings import Experiment
from dpar.files import fields_of
from dpar.report import paper
from dpar.report.agreement import expect_agreement, expect_patches
from dpar.report.measured import Measurements

# Not shown: names for programs, and what has a column of its own.
HIDDEN = {"cell", "training", "patchify.max_length", "patchify.threshold", "inference.threshold", "sampling.cfg_scale"}
# The source of a row that is not quoted, in a table with rows that are.
MADE = "made here"
# Metrics of compute_metrics, as tables call them; the first one's name depends on the feature network.
METRICS = ("frechet_distance", "inception_score", "precision", "recall", "class_agreement", "steps")
# Metrics of linear_probe, in per cent; the paper does not print its protocol, so no difference is shown.
PROBED = ("top1", "top5")
# The paper's name of each of ours.
PRINTED = {"fid": "frechet_distance"}
PRINTED |= {name: name for name in ("inception_score", "precision", "recall", "steps", *PROBED)}
# The escapes of pandas itself swallow the blank after `~` and `^`, and leave `±`, `–` and `Δ` to the engine.
_LATEX = str.maketrans(
    {
        **{sign: "\\" + sign for sign in "_%&#${}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\\": r"\textbackslash{}",
        "±": r"$\pm$",
        "–": "--",
        "Δ": r"$\Delta$",
    }
)
TITLES = {
    "source": "Source",
    "model": "Model",
    "patchify.p_avg": "Wanted P_avg",
    "inference.p_avg": "Wanted P_avg (sampling)",
    "inference.gate": "Gate",
    "milestone": "State",
    "threshold": "E_Th (nats)",
    "max_length": "P_max",
    "patch_length": "P_avg",
    "nll": "Val. NLL (nats/token)",
    "inception_score": "IS",
    "precision": "Precision",
    "recall": "Recall",
    "class_agreement": "Class agreement",
    "steps": "Steps",
    "top1": "Top-1 (%)",
    "top5": "Top-5 (%)",
    "parameters": "Parameters",
    "training_gmacs": "Training GMACs/image",
    "sampling_gmacs": "Sampling GMACs/image",
    "cfg_scale": "CFG",
    "images": "N",
    "trainings": "Trainings",
    "seeds": "Seeds",
}


def build(experiment: Experiment, name: str, measured: Measurements) -> pd.DataFrame:
    """The table `name` with plain column names; a quantity that was not measured is missing, never zero.

    Raises:
        InputError: a measurement is not of what its row says, or two do not belong together.
    """
    expect_agreement(experiment, name, measured)
    tokens = math.prod(experiment.grid)
    rows = []
    for row in table_rows(experiment, name):
        with_paper = replace(row, paper=paper.numbers(experiment, name, row))
        found = _row(with_paper, tokens, measured)
        found["sampling_gmacs"] = cost.sampling_gmacs(experiment, row.model, row.sample, found["steps"])
        rows.append(found)
    frame = pd.DataFrame(rows).astype({"max_length": "Int64"})  # integers, of which some may be missing
    empty = [column for column in frame if column != "frechet_distance" and frame[column].isna().to_numpy().all()]
    return frame.drop(columns=empty)


def with_quoted(frame: pd.DataFrame, quoted: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """`frame` under rows that the paper quotes from others; a first column says which is which."""
    if not quoted:
        return frame
    rows = [
        {
            "source": f"quoted, {entry['kind']}",
            "model": entry["model"],
            "parameters": entry["parameters"],
            **{f"paper_{name}": entry[name] for name in entry if name in PRINTED},
        }
        for entry in quoted
    ]
    whole = pd.concat([pd.DataFrame(rows), frame.assign(source=MADE)], ignore_index=True)
    return whole.reindex(columns=["source", *frame.columns])


def _row(row: Row, tokens: int, given: Measurements) -> dict[str, Any]:
    sample, is_dpar = row.sample, row.model.transformer.is_dpar
    metrics, likelihoods, probes = given.metrics, given.likelihoods, given.probes
    counted = given.costs.get(row.model.slug, {})
    sets = [[metrics[s.slug, seed] for seed in s.sampling.seeds if (s.slug, seed) in metrics] for s in row.samples]
    measured = [m for of_training in sets for m in of_training]
    over_seeds = {name: value for metric in METRICS for name, value in mean_and_sd(metric, sets).items()}
    states = [(s.model, s.milestone) for s in row.samples]
    predicted = [[likelihoods[state]] for state in states if state in likelihoods]
    for state in states:
        if state in likelihoods:
            expect_patches(likelihoods[state], "/".join(state), is_dpar=is_dpar)
    mean_patch_length = _mean_sd([found["mean_patch_length"] for (found,) in predicted if is_dpar])[0]
    # Table 6, gates: the likelihood was measured with the patches of training
    if sample.patchify != row.model.patchify or sample.gate:
        predicted, steps = [], over_seeds["steps"]
        mean_patch_length = tokens / steps if steps else None
    probed = [[probes[state]] for state in states if state in probes]
    found: dict[str, Any] = {
        "model": row.values["model"],
        **{key: _shown(value) for key, value in row.values.items() if key not in ("model", "milestone")},
        "milestone": sample.milestone,
        "threshold": threshold_of(sample.patchify, given.thresholds) if is_dpar and not sample.gate else None,
        "max_length": sample.patchify.max_length if is_dpar and sample.patchify.is_dynamic else None,
        "patch_length": mean_patch_length,
        **mean_and_sd("nll", predicted),
        **over_seeds,
        **{name: value for metric in PROBED for name, value in mean_and_sd(metric, probed).items()},
        "parameters": counted.get("parameters"),
        "training_gmacs": counted.get("training_gmacs"),
        "cfg_scale": sample.sampling.cfg_scale,
        "images": sample.sampling.num_images,
        "trainings": sum(map(bool, sets)) if len(sets) > 1 else None,
        "seeds": max(map(len, sets)),
        "cell": sample.slug,
        "training": sample.model,
    }
    for theirs, number in row.paper.items():
        ours = PRINTED[theirs]
        found[f"paper_{theirs}"] = number
        comparable = theirs not in PROBED and bool(measured) and all(m["comparable_to_published"] for m in measured)
        found[f"difference_{theirs}"] = found[ours] - number if comparable else None
    return found


def mean_and_sd(name: str, sets: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, float | None]:
    """Mean of a quantity, and its standard deviation over trainings, or over the sampling seeds of a single one.

    Args:
        sets: what was measured of each training.
    """
    values = [[v for m in each if (v := m.get("values", m).get(name)) is not None] for each in sets]
    values = [each for each in values if each]
    average, deviation = _mean_sd(
        [mean(each) for each in values] if len(values) > 1 else [v for each in values for v in each]
    )
    return {name: average, f"{name}_sd": deviation}


def _mean_sd(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation, None where there are too few."""
    return mean(values) if values else None, stdev(values) if len(values) > 1 else None


def repeated(experiment: Experiment) -> str:
    """The quantity over which the standard deviation of a number is taken."""
    return "trainings" if len(experiment.training_seeds) > 1 else "sampling seeds"


def _shown(value: Any) -> Any:
    """A setting as one cell of a table can hold it: of several values (`sampling.cfg_interval`) a text."""
    if isinstance(value, list | tuple):
        return str(list(value))
    return "none" if value is None else value


def read_table(path: Path) -> pd.DataFrame:
    """The table in a CSV file that make_table wrote.

    Raises:
        InputError: it is no such table.
    """
    with fields_of(path):
        return pd.read_csv(path)


def best_rows(rows: pd.DataFrame, described: Collection[str]) -> pd.DataFrame:
    """Of each model as the experiment describes it, fully trained and drawn as trained, the row of its best guidance.

    Args:
        rows: of tables, each cell once and with a Frechet distance.
        described: slugs of the trainings of these models.
    """
    own = rows.loc[rows["training"].isin(list(described))]
    own = own.loc[~own.filter(like="inference.").notna().any(axis="columns")]
    trained = own["milestone"].astype(str).str.extract(r"(\d+)$", expand=False).astype(int)
    last = own.loc[trained == trained.groupby(own["model"]).transform("max")]
    return last.loc[last.groupby("model")["frechet_distance"].idxmin()]


def readable(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """`frame` as people read it: titles, rounded numbers, mean ± standard deviation, a dash for what does not apply.

    A metric of a cell that is not there yet is called missing.

    Args:
        metric: what `frechet_distance` is called with this feature network, such as `FD[classifier, 32]`.
    """
    titles = {**TITLES, "frechet_distance": metric}
    columns: dict[str, list[str]] = {}
    for name in frame.columns:
        if name.endswith("_sd") or name in HIDDEN:
            continue
        spreads = frame[f"{name}_sd"] if f"{name}_sd" in frame else [None] * len(frame)
        texts = [_number(value, spread) for value, spread in zip(frame[name], spreads, strict=True)]
        if name == "frechet_distance":
            absent = (frame["seeds"] == 0).tolist()
            texts = ["missing" if none else text for none, text in zip(absent, texts, strict=True)]
        columns[_title(name, titles)] = texts
    return pd.DataFrame(columns)


def _title(name: str, titles: Mapping[str, str]) -> str:
    if name in titles:
        return titles[name]
    for prefix, word in (("paper_", "Paper "), ("difference_", "Δ ")):
        if name.startswith(prefix):
            theirs = name.removeprefix(prefix)
            short = {"fid": "FID", "inception_score": "IS", "top1": "top-1 (%)", "top5": "top-5 (%)"}
            return word + short.get(theirs, theirs.capitalize())
    return name.rpartition(".")[2] if "." in name else name


def _number(value: Any, spread: Any) -> str:
    if pd.isna(value):
        return "–"
    if isinstance(value, str | bool):
        return str(value)
    if not pd.isna(spread):
        return with_spread(value, spread)
    if isinstance(value, float) and value.is_integer() and abs(value) >= 1000:
        value = int(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def with_spread(mean: float, sd: float, sign: str = "") -> str:
    """`mean ± sd` with two digits of the standard deviation, and as many decimals of the mean: `2.3000 ± 0.0059`.

    Args:
        sign: `+` for a difference, which has its sign always.
    """
    if not 1e-6 < sd < math.inf:
        return f"{mean:{sign}.4g} ± {sd:.2g}"
    decimals = max(0, 1 - math.floor(math.log10(float(f"{sd:.1e}"))))  # 0.0999 is 0.10
    return f"{mean:{sign},.{decimals}f} ± {sd:,.{decimals}f}"


def to_markdown(frame: pd.DataFrame, title: str, notes: Sequence[str]) -> str:
    """A Markdown table under its title, with the conditions below."""
    cells = frame.rename(columns=_cell).map(_cell)
    table = cells.to_markdown(index=False, disable_numparse=True)
    return f"## {plain(title)}\n\n{table}\n\n" + "".join(f"- {plain(note)}\n" for note in notes)


def plain(text: str) -> str:
    """A text that Markdown takes for no HTML, on one line; `html.unescape` gives it back."""
    return " ".join(text.splitlines()).replace("<", "&lt;")


def _cell(value: Any) -> Any:
    return plain(value).replace("|", r"\|") if isinstance(value, str) else value


def to_latex(frame: pd.DataFrame, title: str) -> str:
    """The table as a LaTeX `table` for booktabs."""
    styled, columns = frame.style, "l" * len(frame.columns)
    styled.hide(axis="index")
    styled.format(_latex)
    styled.format_index(_latex, axis=1)
    return styled.to_latex(caption=_latex(title), column_format=columns, position_float="centering", hrules=True)


def _latex(value: Any) -> str:
    return str(value).translate(_LATEX)
