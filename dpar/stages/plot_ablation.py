"""Draws one table: heat maps of a grid, curves over the length of training, or points with their spread."""

import sys
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dpar.errors import run_command
from dpar.experiment.settings import Experiment
from dpar.report.figures import Panel, curves, error_bars, heat_maps
from dpar.report.labels import axis_label, label, level
from dpar.report.tables import MADE
from dpar.report.verdict import ties
from dpar.workflow.table_figure import draw_table, table_stage

PANELS = {
    "nll": "validation NLL (nats/token)",
    "training_gmacs": "training GMACs/image",
    "sampling_gmacs": "sampling GMACs/image",
    "patch_length": "P_avg",
}

STAGE = table_stage("plot_ablation", __doc__)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage."""
    draw_table(STAGE, argv, draw)


def draw(experiment: Experiment, table: str, frame: pd.DataFrame, floor: dict) -> Figure:
    """The figure of a table as its CSV file has it."""
    metric = floor["metric"]
    frame = frame.loc[frame["source"] == MADE] if "source" in frame else frame
    if experiment.tables[table].is_training_curve:
        return course(experiment, frame, metric)
    panels = {"frechet_distance": metric, **{name: title for name, title in PANELS.items() if name in frame}}
    if experiment.tables[table].is_grid:
        varied = down, across = list(experiment.tables[table].vary)
        # a threshold that was calibrated is shown in nats, as the paper shows it
        names = {
            axis: {value: level(axis, value, part) for value, part in frame.groupby(axis, sort=False)}
            for axis in varied
        }
        order = {axis: frame[axis].unique() for axis in varied}  # as the experiment lists them
        grids = {
            title: frame.pivot(index=down, columns=across, values=name).reindex(
                index=order[down], columns=order[across]
            )
            for name, title in panels.items()
        }
        first = next(iter(grids.values()))
        tied = frame.assign(tied=ties(frame).astype(float)).pivot(index=down, columns=across, values="tied")
        deviations = {
            title: float(np.nan_to_num(frame[f"{name}_sd"].to_numpy(float)).mean())
            for name, title in panels.items()
            if f"{name}_sd" in frame
        }
        return heat_maps(
            {title: grid.to_numpy(float) for title, grid in grids.items()},
            [names[down][value] for value in first.index],
            [names[across][value] for value in first.columns],
            axis_label(down),
            axis_label(across),
            unranked=[PANELS["patch_length"]],
            tied={metric: tied.reindex(index=first.index, columns=first.columns).to_numpy(float) == 1},
            spreads=deviations,
        )
    shown = {name: title for name, title in panels.items() if not frame[name].isna().to_numpy().all()}
    spreads = frame.reindex(columns=[f"{name}_sd" for name in shown], fill_value=0.0).fillna(0.0)
    return error_bars(
        {title: (frame[name].tolist(), spreads[f"{name}_sd"].tolist()) for name, title in shown.items()},
        frame["cell"].tolist(),
        {metric: floor["frechet_distance"]["mean"]},
    )


def course(experiment: Experiment, frame: pd.DataFrame, metric: str) -> Figure:
    """Quality against the length and the compute of training, next to the paper's where it prints one (Figure 4).

    A curve is a model with the settings in which the table's rows differ, a band its standard deviation.
    """
    unit, whole = experiment.training.unit, frame.convert_dtypes()  # numbers of which some are missing stay integers
    settings = [key for key in frame.columns[frame.nunique(dropna=False) > 1] if "." in key]
    names = [", ".join(filter(None, [model, label(settings, whole, i)])) for i, model in enumerate(frame["model"])]
    lengths = frame["milestone"].str.removeprefix(unit).astype(int)
    states = frame.assign(name=names, length=lengths).sort_values("length")
    across = {"length": f"{unit}s of training"}
    if "training_gmacs" in frame and len(set(frame["training_gmacs"].dropna())) > 1:
        costliest = states.loc[states["training_gmacs"].idxmax()]
        states["compute"] = states["length"] * states["training_gmacs"] / costliest["training_gmacs"]
        across["compute"] = f"training MACs, in {unit}s of {costliest['model']}"

    def series(x: str, y: str) -> dict[str, tuple[list[float], list[float]]]:
        if y not in states:
            return {}
        parts = states.dropna(subset=[y]).groupby("name", sort=False)
        found = {str(name): (part[x].tolist(), part[y].tolist()) for name, part in parts}
        return {name: found[name] for name in dict.fromkeys(names) if name in found}

    def row(quantity: str, title: str) -> list[Panel]:
        bands: dict[str, list[float]] = {}
        if f"{quantity}_sd" in states:
            parts = states.dropna(subset=[quantity]).groupby("name", sort=False)
            bands = {str(name): part[f"{quantity}_sd"].tolist() for name, part in parts}
        is_printed = quantity == "frechet_distance" and metric == "FID"
        return [
            Panel(said, title, series(x, quantity), bands, series(x, "paper_fid") if is_printed else {})
            for x, said in across.items()
        ]

    quantities = {"frechet_distance": metric, "nll": PANELS["nll"]}
    return curves(*(row(name, title) for name, title in quantities.items() if series("length", name)))


if __name__ == "__main__":
    sys.exit(run_command(main))
