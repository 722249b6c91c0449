"""Says how far a run is, from any shell and afterwards: done, running with a last word, failed with the log."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dpar.errors import InputError
from dpar.experiment.settings import SMOKE_SUFFIX
from dpar.workflow import journal
from dpar.workflow.options import DEFAULT_EXPERIMENT, Parser, add_directory, add_experiment, read_experiment


def parser() -> argparse.ArgumentParser:
    """The options of this command."""
    options = Parser(prog="dpar status", description=__doc__)
    add_experiment(options, None, "that of the run that began last")
    add_directory(options)
    options.add_argument("--results", type=Path, metavar="FOLDER", help="of a run (default: those of --config)")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the state of the last run.

    Raises:
        InputError: none was made into these results.
    """
    args = parser().parse_args(argv)
    results = args.results or _results(args)
    state = journal.read(results)
    if state is None:
        raise InputError(
            f"no run has left a journal in {results}; `dpar run` and snakemake write one: --directory and --results "
            "say where to look"
        )
    print(f"{results}{', a smoke: its numbers say nothing' * results.name.endswith(SMOKE_SUFFIX)}")
    for line in [
        *journal.lines(state, results.resolve().parents[1]),
        *journal.failures(state, results.resolve().parents[1]),
    ]:
        print(line)


def _results(args: argparse.Namespace) -> Path:
    """The results of the experiment that is named, or of the run that began last; without one, their folder."""
    folder = args.directory / "results"
    if args.config or args.set or args.smoke:
        args.config = args.config or DEFAULT_EXPERIMENT
        return folder / read_experiment(args)[0].name
    runs = [(state.began, path) for path in sorted(folder.glob("*")) if (state := journal.read(path)) is not None]
    return max(runs, default=(0.0, folder))[1]
