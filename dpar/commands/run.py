"""Runs an experiment from images to the report; the same command again continues after any interruption."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from dpar.errors import InputError, run_command
from dpar.experiment.loading import load_experiment, parse_experiment
from dpar.experiment.settings import Experiment
from dpar.files import unmarked
from dpar.mirror.store import find_store
from dpar.workflow.checks import refuse
from dpar.workflow.run import LOCKED, RETRAIN, run_lock
from dpar.workflow.supervision import Supervised

# Not `code`: Snakemake would retrain a model for a blank in a shell command; dpar/workflow/recipes.py says what is out
# of date.
TRIGGERS = ("mtime", "params", "input", "software-env")


def parser() -> argparse.ArgumentParser:
    """The options of `dpar run`."""
    options = argparse.ArgumentParser(prog="dpar run", description=__doc__)
    options.add_argument("--config", type=Path, default=Path("config/demo.yaml"), help="the experiment")
    options.add_argument("--cores", type=int, default=os.cpu_count(), help="CPU cores to use")
    options.add_argument("--directory", type=Path, default=Path(), help="where results/ is made")
    options.add_argument("--retrain", action="store_true", help="do finished trainings again that are out of date")
    options.add_argument("snakemake", nargs="*", metavar="-- ARGUMENT", help="what follows -- goes to snakemake")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the graph and says where the results are.

    Raises:
        InputError: the experiment or the tracking address is not valid, another run is going on, or a stage failed.
        SystemExit: with 128 and the number of the signal that asked for an end, when all that was under way has ended.
    """
    from dpar.data.changes import say_changes  # takes as long as the rest, and the Snakefile reads this module

    args = parser().parse_args(argv)
    if not Path("Snakefile").is_file():
        raise InputError(f"there is no Snakefile in {Path.cwd()}; call `dpar run` from the top of the repository")
    load_experiment(args.config)
    snakemake = ["--directory", str(args.directory), "--configfile", str(args.config.resolve())]
    # Snakemake's own lock outlives a run that is killed, and covers other experiments' results too; ours does not.
    # An option ends the list of triggers, to which a target would otherwise be added.
    snakemake += ["--cores", str(args.cores), "--rerun-triggers", *TRIGGERS, "--nolock", "--rerun-incomplete"]
    experiment, folder = what_runs([*snakemake, *args.snakemake])
    refuse(experiment, to_make=())
    results = folder / "results" / experiment.name
    find_store(results)  # and a tracking address with a typo
    say_changes(results)
    with run_lock(results) as lock:
        command = [sys.executable, "-m", "snakemake", *snakemake, *args.snakemake]
        status = _run(command, lock, {RETRAIN: "1"} if args.retrain else {})
    if status:
        raise InputError(
            f"the run stopped before its end (snakemake's exit status {status}); "
            "see the first error above, mend its cause and run the same command again: finished work is kept"
        )
    if not {"-n", "--dry-run", "--dryrun"} & set(args.snakemake):
        print(where_to_look(results))


def what_runs(arguments: Sequence[str]) -> tuple[Experiment, Path]:
    """The experiment that snakemake runs with these arguments, whatever `--config` makes of its file, and the folder.

    Raises:
        InputError: the experiment is not valid.
        SystemExit: snakemake does not know an argument.
    """
    from snakemake.cli import parse_args, parse_config
    from snakemake.exceptions import WorkflowError
    from snakemake.settings.types import ConfigSettings

    _, given = parse_args(arguments)
    where = " + ".join([*map(str, given.configfile), *(["--config"] if given.config else [])])
    try:
        settings = ConfigSettings(config=parse_config(given.config), configfiles=given.configfile)
    except (OSError, ValueError, WorkflowError) as error:
        raise InputError(f"{where}: {error}") from None
    return parse_experiment(unmarked(settings.overwrite_config), where), Path(given.directory or "")


def where_to_look(results: Path) -> str:
    """Files and pages to open after a run with outputs in `results`."""
    report, program = results / "report.html", Path(sys.executable).with_name("dpar")
    page = [f"Report     {report}", f"           open it in a browser: {report.resolve().as_uri()}"]
    return "\n".join(
        [
            "",
            *(page if report.is_file() else [f"Results    {results}"]),
            f"Dashboard  {program} track ui --results {results}",
            "           prints an address on this machine; `make dashboard` does the same",
            f"Audit      {program} track audit --results {results}",
            "           proves that every output belongs to a finished, tracked run",
        ]
    )


def _run(command: Sequence[str], lock: IO[str], told: Mapping[str, str]) -> int:
    """Exit status of `command`; who asks this process to stop asks it and its jobs, which save what they have."""
    locked = str(Path(lock.name).resolve().parents[1])
    running = Supervised(command, env={**os.environ, LOCKED: locked, **told}, pass_fds=(lock.fileno(),))
    status = running.wait()
    if running.stopped_by is not None:
        print(
            f"interrupted ({running.stopped_by.name}): finished work is kept, and trainings have a state; "
            "the same command goes on from there",
            file=sys.stderr,
        )
        raise SystemExit(128 + running.stopped_by)
    return status


if __name__ == "__main__":
    sys.exit(run_command(main))
