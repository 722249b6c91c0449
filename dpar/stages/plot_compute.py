"""Draws the metric of every model against its cost of training, DPAR and LlamaGen (Figure 1b)."""

import sys
from collections.abc import Collection, Sequence
from typing import Any

import pandas as pd

from dpar.errors import run_command
from dpar.experiment.cells import described_models
from dpar.report.figures import metric_against_cost, save
from dpar.report.measured import Floor, read_measured
from dpar.report.tables import best_rows, read_table
from dpar.workflow import jobs
from dpar.workflow.stage import Stage, flag

STAGE = Stage(
    "plot_compute",
    __doc__,
    flag("--tables", "tables/TABLE.csv ...", nargs="*"),
    flag("--noise-floor"),
    flag("--output"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage."""
    run = STAGE.start(argv)
    args, experiment = run.args, run.experiment
    with run.job(inputs=jobs.tables(args.tables, args.noise_floor), outputs=[args.output]) as job:
        floor = read_measured(args.noise_floor, Floor)
        tables = [read_table(path) for path in args.tables]
        points = points_of(pd.concat(tables, ignore_index=True), described_models(experiment)) if tables else []
        save(metric_against_cost(points, floor["metric"], floor["frechet_distance"]["mean"]), args.output)
        job.figure(args.output)


def points_of(rows: pd.DataFrame, described: Collection[str]) -> list[dict[str, Any]]:
    """Each model as the experiment describes it, for `metric_against_cost`.

    Args:
        rows: of tables.
        described: slugs of the trainings of these models.
    """
    rows = rows.drop_duplicates("cell").dropna(subset=["training_gmacs", "frechet_distance"])
    rows = best_rows(rows, described)
    spreads = rows.reindex(columns=["frechet_distance_sd"], fill_value=0.0)["frechet_distance_sd"].fillna(0.0)
    return [
        {
            "label": row["cell"].replace(row["training"], row["model"], 1),  # which may have the seed in its name
            "model": row["model"],
            "cost": row["training_gmacs"],
            "value": row["frechet_distance"],
            "spread": spread,
        }
        for row, spread in zip(rows.to_dict("records"), spreads, strict=True)
    ]


if __name__ == "__main__":
    sys.exit(run_command(main))
