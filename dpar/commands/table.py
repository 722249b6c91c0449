"""Prints a table from what has been made so far: missing cells are shown as missing, with the command that makes them.

Nothing is computed. `snakemake TABLE --configfile FILE` makes all that a table needs, and says with `-n` what of it is
out of date.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dpar.errors import InputError
from dpar.experiment.cells import SampleCell, p_avg_targets, table_rows
from dpar.experiment.settings import Experiment
from dpar.files import fields_of
from dpar.report import paper, tables
from dpar.report.made_under import expect_settings
from dpar.report.measured import Counts, Floor, Likelihood, Measurements, Probe, read_measured, read_metrics
from dpar.report.notes import notes
from dpar.report.targets import SHARED, likelihood_files, metric_files, probe_files, refusal, tables_of, targets
from dpar.statement import unstamped
from dpar.tracking.makers import check_recorded, recorded_json
from dpar.workflow import jobs
from dpar.workflow.options import Parser, add_directory, add_experiment, read_experiment, run_of

SUFFIXES = {"markdown": "md", "csv": "csv", "latex": "tex"}


def parser() -> argparse.ArgumentParser:
    """The flags of this command."""
    flags = Parser(prog="dpar table", description=__doc__.split("\n\n")[0] if __doc__ else "")
    flags.add_argument("table", help="a name under `tables` of the experiment, or the paper's, such as table4")
    add_experiment(flags)
    add_directory(flags)
    flags.add_argument("--format", choices=tuple(SUFFIXES), default="markdown", help="of what is printed")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table.

    Raises:
        InputError: the experiment is not valid, or has no such table.
    """
    args = parser().parse_args(argv)
    experiment, _ = read_experiment(args)
    if args.table not in targets(experiment):
        raise InputError(refusal(args.table, experiment, args.config.parent, f"--config {args.config.parent}"))
    names = tables_of(experiment, [args.table])
    for name in names:
        print(table(experiment, name, args))
    if not names:  # what is computed from sizes, or drawn
        made = args.directory / "results" / experiment.name / "tables" / f"{args.table}.{SUFFIXES[args.format]}"
        if not made.is_file():
            raise InputError(
                f"{args.table} is not printed from measurements, and {made} is not there; "
                f"`{run_of(args)} -- {args.table}` makes what belongs to it"
            )
        check_recorded(made)
        print(unstamped(made.read_text("utf-8")))


def table(experiment: Experiment, name: str, args: argparse.Namespace) -> str:
    """The table `name` in the wanted form, from the files that are there."""
    results = args.directory / "results" / experiment.name
    cells = [cell for row in table_rows(experiment, name) for cell in row.samples]
    metrics, likelihoods, probes = {}, {}, {}
    likelihoods_of, probes_of = (partial(jobs.by_state, rule) for rule in ("evaluate_likelihood", "linear_probe"))
    for cell in cells:
        for seed in cell.sampling.seeds:
            path = results / "metrics" / cell.slug / f"seed{seed}.json"
            metrics |= {(cell.slug, seed): read_metrics(path, jobs.recorded(jobs.metrics))} if path.is_file() else {}
        state = (cell.model, cell.milestone)
        named = Path(cell.model, f"{cell.milestone}.json")
        likelihoods |= _found(results / "likelihood" / named, Likelihood, state, likelihoods_of)
        if experiment.tables[name].linear_probe:
            probes |= _found(results / "linear_probe" / named, Probe, state, probes_of)
    measured = Measurements(
        metrics,
        likelihoods,
        thresholds={"p_avg": dict(_thresholds(experiment, results))},
        costs=_found(results / "patch_counts.json", Counts, "", jobs.patch_counts).get("", {}).get("cells", {}),
        floor=_found(results / "metrics" / "noise_floor.json", Floor, "", jobs.noise_floor).get(""),
        probes=probes,
    )
    frame = tables.build(experiment, name, measured)
    expect_settings(results, experiment, name, measured)
    whole = tables.with_quoted(frame, paper.quoted(experiment, name))
    if args.format == "csv":
        return whole.to_csv(index=False)
    shown = tables.readable(whole, measured.metric)
    title = experiment.tables[name].title
    if args.format == "latex":
        return tables.to_latex(shown, title)
    below = [*notes(experiment, name, measured), *missing(experiment, name, args, results, cells)]
    return tables.to_markdown(shown, title, below)


def missing(
    experiment: Experiment, name: str, args: argparse.Namespace, results: Path, cells: Sequence[SampleCell]
) -> list[str]:
    """A line for each cell that lacks measurements, with the command that makes them, and one for all.

    What some cells share, such as the likelihood of their state, stands in the line of the first of them.
    """
    run, lines, named = f"{run_of(args)} --", [], set()

    def absent(files: Iterable[str]) -> list[str]:
        lacking = [file for file in files if file not in named and not (results / file).is_file()]
        named.update(lacking)
        return lacking

    def add(what: str, files: Sequence[str]) -> None:
        if files:
            paths = " ".join(f"results/{experiment.name}/{file}" for file in files)
            lines.append(f"Missing: {what}; `{run} {paths}`")

    for cell in {cell.slug: cell for cell in cells}.values():
        seeds = len(cell.sampling.seeds)
        unmeasured = absent(metric_files([cell]))
        lacking = {
            f"{seeds - len(unmeasured)} of {seeds} seeds": unmeasured,
            "no likelihood": absent(likelihood_files([cell])),
            "no linear probe": absent(probe_files(experiment.tables[name], [cell])),
        }
        said = (word for word, files in lacking.items() if files)
        add(", ".join([cell.slug, *said]), [file for files in lacking.values() for file in files])
    for what, file in SHARED.items():
        add(what, absent([file]))
    return [*lines, f"All of it: `{run} {args.table}`; what that would run: `{run} {args.table} -n`"] if lines else []


def _found(path: Path, kind: type[BaseModel], key: Any, wanted: Callable[..., Any]) -> dict[Any, Any]:
    return {key: read_measured(path, kind, jobs.recorded(wanted))} if path.is_file() else {}


def _thresholds(experiment: Experiment, results: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """Calibrated threshold of each target; NaN where calibrate_threshold has not run."""
    for target in p_avg_targets(experiment):
        path = results / "thresholds" / f"pavg{target}.json"
        if not path.is_file():
            yield str(target), {"threshold": float("nan")}
            continue
        with fields_of(path):
            entry = recorded_json(*jobs.thresholds(experiment, [path], target))["p_avg"][str(target)]
            yield str(target), {"threshold": float(entry["threshold"])}
