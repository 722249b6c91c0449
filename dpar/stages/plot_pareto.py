"""Draws the metric of a table's cells against what training and sampling cost, with the cells that no other beats."""

import sys
from collections.abc import Sequence

import pandas as pd

from dpar.errors import InputError, run_command
from dpar.experiment.settings import Experiment
from dpar.report.figures import pareto, save
from dpar.report.labels import label
from dpar.report.measured import Floor, read_measured
from dpar.report.tables import read_table
from dpar.workflow import jobs
from dpar.workflow.stage import Stage, flag

COSTS = {"training_gmacs": "training GMACs/image", "sampling_gmacs": "sampling GMACs/image"}

STAGE = Stage(
    "plot_pareto",
    __doc__,
    flag("--table", type=str),
    flag("--csv", "tables/TABLE.csv"),
    flag("--noise-floor", "for the name of the metric"),
    flag("--output"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage.

    Raises:
        InputError: no cell of the table has a metric and a cost.
    """
    run = STAGE.start(argv)
    args, experiment = run.args, run.experiment
    with run.job(
        args.table,
        inputs=jobs.table(args.table, args.csv, args.noise_floor),
        outputs=[args.output],
        params={"table": args.table},
    ) as job:
        panels = points(experiment, args.table, read_table(args.csv))
        save(pareto(panels, read_measured(args.noise_floor, Floor)["metric"]), args.output)
        job.figure(args.output)


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
