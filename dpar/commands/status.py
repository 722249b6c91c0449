"""Says how far a run is, from any shell and afterwards: done, running, what was warned of, failed with the log."""

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
    results, state = _run(args)
    if state is None:
        raise InputError(
            f"no run has left a journal in {results}; `dpar run` and snakemake write one: --directory and --results "
            "say where to look"
        )
    print(f"{results}{', a smoke: its numbers say nothing' * results.name.endswith(SMOKE_SUFFIX)}")
    for line in [
        *journal.lines(state, results.resolve().parents[1]),
        *journal.warnings(state.finished, results.resolve().parents[1], set()),
        *journal.failures(state, results.resolve().parents[1]),
    ]:
        print(line)


def _run(args: argparse.Namespace) -> tuple[Path, journal.RunState | None]:
    """The last run into the results that are named, or of all the one that began last; without one, their folder."""
    folder, results = args.directory / "results", args.results
    if results is None and (args.config or args.set or args.smoke):
        args.config = args.config or DEFAULT_EXPERIMENT
        results = folder / read_experiment(args)[0].name
    if results is not None:
        return results, journal.read(results)
    runs = [(path, state) for path in sorted(folder.glob("*")) if (state := journal.read(path)) is not None]
    return max(runs, key=lambda run: run[1].began, default=(folder, None))
