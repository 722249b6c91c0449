"""Draws the metric of a table's cells against what training and sampling cost, with the cells that no other beats."""

import sys
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from dpar.errors import InputError, run_command
from dpar.experiment.settings import Experiment
from dpar.report.figures import pareto
from dpar.report.labels import label
from dpar.workflow.table_figure import draw_table, table_stage

COSTS = {"training_gmacs": "training GMACs/image", "sampling_gmacs": "sampling GMACs/image"}

STAGE = table_stage("plot_pareto", __doc__)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage.

    Raises:
        InputError: no cell of the table has a metric and a cost.
    """
    draw_table(STAGE, argv, draw)


def draw(experiment: Experiment, table: str, frame: pd.DataFrame, floor: dict) -> Figure:
    """The figure of a table as its CSV file has it."""
    return pareto(points(experiment, table, frame), floor["metric"])


def points(experiment: Experiment, table: str, frame: pd.DataFrame) -> dict[str, list[tuple[str, float, float]]]:
    """Name of each cost -> (what varies, cost, Frechet distance) of the cells that have both.

    Raises:
        InputError: no cell has.
    """
    varied = list(experiment.tables[table].vary)
    found = {}
    for name, title in COSTS.items():
        if name not in frame:
            continue
        measured = frame.dropna(subset=[name, "frechet_distance"])
        found[title] = [
            (label(varied, measured, i) or str(cell), float(cost), float(value))
            for i, (cell, cost, value) in enumerate(
                zip(measured["cell"], measured[name], measured["frechet_distance"], strict=True)
            )
        ]
    found = {title: cells for title, cells in found.items() if cells}
    if not found:
        raise InputError(f"no cell of {table} has a Frechet distance and a cost; run make_table again")
    return found


if __name__ == "__main__":
    sys.exit(run_command(main))
