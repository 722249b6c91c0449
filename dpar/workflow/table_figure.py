"""The frame of the stages that draw one table: its CSV file and the noise floor in, a figure out."""

from collections.abc import Callable, Sequence

import pandas as pd
from matplotlib.figure import Figure

from dpar.experiment.settings import Experiment
from dpar.report.figures import save
from dpar.report.measured import Floor, read_measured
from dpar.report.tables import read_table
from dpar.workflow import jobs
from dpar.workflow.stage import Stage, flag


def table_stage(rule: str, description: str | None) -> Stage:
    """A stage with the flags that `draw_table` reads."""
    floor = flag("--noise-floor", "for the name of the metric, and how little of it means nothing")
    return Stage(
        rule, description, flag("--table", type=str), flag("--csv", "tables/TABLE.csv"), floor, flag("--output")
    )


def draw_table(
    stage: Stage, argv: Sequence[str] | None, draw: Callable[[Experiment, str, pd.DataFrame, dict], Figure]
) -> None:
    """Runs the stage: `draw` gets the experiment, the table's name, the table and the noise floor."""
    run = stage.start(argv)
    args = run.args
    with run.job(
        args.table,
        inputs=jobs.table(args.table, args.csv, args.noise_floor),
        outputs=[args.output],
        params={"table": args.table},
    ) as job:
        figure = draw(run.experiment, args.table, read_table(args.csv), read_measured(args.noise_floor, Floor))
        save(figure, args.output)
        job.figure(args.output)
