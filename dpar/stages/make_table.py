"""Prints one table: ours, the paper's where it has one, and the conditions."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import pandas as pd

from dpar import tracking
from dpar.errors import run_command
from dpar.experiment.cells import Row, merged_thresholds, table_rows
from dpar.files import write_text
from dpar.report import paper, tables
from dpar.report.measured import Counts, Floor, Likelihood, Measurements, Probe, read_measured, read_metrics
from dpar.report.notes import notes
from dpar.workflow import jobs
from dpar.workflow.stage import THRESHOLDS, Stage, flag

# where the dashboard shows a measured quantity, if not among the evaluations; and those that stand next to the paper's
GROUPS = {"nll": "val", "patch_length": "patch", **dict.fromkeys(tables.PROBED, "probe")}
GROUPS |= dict.fromkeys(("training_gmacs", "sampling_gmacs", "parameters"), "cost")
COMPARED = ("paper_", "difference_")

STAGE = Stage(
    "make_table",
    __doc__,
    flag("--table", "a name under `tables` of the experiment", type=str),
    flag("--metrics", "metrics/CELL/seedN.json ...", nargs="+"),
    flag("--likelihoods", "likelihood/MODEL/STATE.json ...", nargs="+"),
    flag("--noise-floor"),
    flag("--patch-counts"),
    THRESHOLDS,
    flag("--linear-probes", "linear_probe/MODEL/STATE.json ...", nargs="*", default=[]),
    flag("--pictures", "samples/CELL/seedN/00000.png ...", nargs="+"),
    flag("--csv"),
    flag("--markdown"),
    flag("--latex"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage."""
    run = STAGE.start(argv)
    args, experiment = run.args, run.experiment
    wanted = [
        *jobs.metrics(args.metrics),
        *jobs.by_state("evaluate_likelihood", args.likelihoods),
        *tracking.made_by("measure_noise_floor", args.noise_floor),
        *tracking.made_by("count_patches", args.patch_counts),
        *jobs.thresholds(experiment, args.thresholds),
        *jobs.by_state("linear_probe", args.linear_probes),
        *jobs.samples(args.pictures),
    ]
    run.check(wanted)
    measured, title = measurements(args), experiment.tables[args.table].title
    with run.job(
        args.table,
        inputs=wanted,
        outputs=[args.csv, args.markdown, args.latex],
        params={"table": args.table, "title": title},
    ) as job:
        frame = tables.build(experiment, args.table, measured)
        whole = tables.with_quoted(frame, paper.quoted(experiment, args.table))
        shown = tables.readable(whole, measured.metric)
        below = [
            *notes(experiment, args.table, measured),
            f"A row's runs: `dpar lineage {args.metrics[0]}`, and so on; the dashboard has the table under its name.",
        ]
        write_text(args.csv, whole.to_csv(index=False))
        write_text(args.latex, tables.to_latex(shown, title))
        markdown = tables.to_markdown(shown, title, below)
        write_text(args.markdown, markdown)  # the last, which says what the table was
        print(markdown)
        record_rows(job, frame, table_rows(experiment, args.table), args)


def measurements(args: argparse.Namespace) -> Measurements:
    """All that the flags name.

    Raises:
        InputError: a file is something else than its flag says.
    """
    likelihoods, probes = (
        {(p.parent.name, p.stem): read_measured(p, kind) for p in paths}
        for kind, paths in ((Likelihood, args.likelihoods), (Probe, args.linear_probes))
    )
    return Measurements(
        metrics={(p.parent.name, int(p.stem.removeprefix("seed"))): read_metrics(p) for p in args.metrics},
        likelihoods=likelihoods,
        thresholds=merged_thresholds(args.thresholds),
        costs=read_measured(args.patch_counts, Counts)["cells"],
        floor=read_measured(args.noise_floor, Floor),
        probes=probes,
    )


def record_rows(job: tracking.Job, frame: pd.DataFrame, rows: Sequence[Row], args: argparse.Namespace) -> None:
    """Records each row as a result of its own, with the files that it came from and samples of it."""
    pictures = {path.parents[1].name: path for path in args.pictures}
    for record, row in zip(frame.to_dict("records"), rows, strict=True):
        slugs = {sample.slug for sample in row.samples}
        states = {(sample.model, sample.milestone) for sample in row.samples}
        job.result(
            table=args.table,
            cell=record["cell"],
            params=_params(record),
            metrics=_metrics(record),
            sources=[
                *(p for p in args.metrics if p.parent.name in slugs),
                *(p for p in (*args.likelihoods, *args.linear_probes) if (p.parent.name, p.stem) in states),
            ],
            image=pictures.get(record["cell"]),
        )


def _params(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if not _is_measured(key) and not pd.isna(value)}


def _metrics(record: dict[str, Any]) -> dict[str, float]:
    """The measured quantities of a row, named as the dashboard groups them."""
    found = {}
    for key, value in record.items():
        if _is_measured(key) and not pd.isna(value):
            plain = key.removesuffix("_sd")
            group, rest = key.split("_", 1) if key.startswith(COMPARED) else (GROUPS.get(plain, "eval"), key)
            found[f"{group}/{rest}"] = float(value)
    return found


def _is_measured(key: str) -> bool:
    plain = key.removesuffix("_sd")
    return plain in GROUPS or plain in tables.METRICS or key.startswith(COMPARED)


if __name__ == "__main__":
    sys.exit(run_command(main))
