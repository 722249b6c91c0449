"""Runs an experiment from images to the report; the same command again continues after any interruption."""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

from dpar.config import load_experiment
from dpar.errors import InputError, run_command
from dpar.files import only_process
from dpar.grid import sample_cells
from dpar.tracking.store import find_store

# Set for the Snakefile, which otherwise takes the lock itself.
LOCKED = "DPAR_RESULTS_LOCKED"
# Set where finished trainings may be done again.
RETRAIN = "DPAR_RETRAIN"
# Not `code`: Snakemake would retrain a model for a blank in a shell command. dpar/recipes.py says what is out of date.
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
    """
    from dpar.data.changes import say_changes  # takes as long as the rest, and the Snakefile reads this module

    args = parser().parse_args(argv)
    if not Path("Snakefile").is_file():
        raise InputError(f"there is no Snakefile in {Path.cwd()}; call `dpar run` from the top of the repository")
    experiment = load_experiment(args.config)
    sample_cells(experiment)  # a table that cannot be filled is refused here, in one line
    results = args.directory / "results" / experiment.name
    find_store(results)  # and a tracking address with a typo
    snakemake = [sys.executable, "-m", "snakemake", "--directory", str(args.directory)]
    snakemake += ["--configfile", str(args.config.resolve()), "--cores", str(args.cores)]
    say_changes(results)
    with only_run(results) as lock:
        # Snakemake's own lock outlives a run that is killed, and covers other experiments' results too; ours does not.
        # An option ends the list of triggers, to which a target would otherwise be added.
        command = [*snakemake, "--rerun-triggers", *TRIGGERS, "--nolock", "--rerun-incomplete", *args.snakemake]
        status = _run(command, lock, {RETRAIN: "1"} if args.retrain else {})
    if status:
        raise InputError(
            f"the run stopped before its end (snakemake's exit status {status}); "
            "see the first error above, mend its cause and run the same command again: finished work is kept"
        )
    if not {"-n", "--dry-run", "--dryrun"} & set(args.snakemake):
        print(where_to_look(results))


def where_to_look(results: Path) -> str:
    """What to open after a run whose outputs lie in `results`."""
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


def only_run(results: Path) -> AbstractContextManager[IO[str]]:
    """The lock of the experiment's results, inherited by snakemake so that it lasts as long as the graph runs."""
    refusal = f"another run into {results} is going on; wait for its end or stop it first"
    return only_process(results / "tracking" / "run.lock", refusal)


def retraining(again: Mapping[str, str], *, meant: bool) -> str:
    """What is said before finished trainings are done again.

    Args:
        again: folder of each -> why it is out of date, in Snakemake's words.
        meant: whether the user asked for it.
    """
    listed = "\n".join(f"  {folder}: {why.replace('params', 'settings or recipe')}" for folder, why in again.items())
    if meant:
        return f"this run trains again what was finished:\n{listed}"
    return (
        f"this run would train again, and overwrite, what is finished:\n{listed}\n"
        "Nothing was started. Undo what changed to keep them; to train them again say `dpar run --retrain ...`, or set "
        f"{RETRAIN}=1 for snakemake. Files that merely look older than what they were made from, as copied ones may, "
        "are put right by `snakemake --touch`. `-n` lists every job with its reason"
    )


def _run(command: Sequence[str], lock: IO[str], told: Mapping[str, str]) -> int:
    """Exit status of `command`; Ctrl-C is left to it, so that its jobs can save what they have."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return subprocess.run(
            command,
            env={**os.environ, LOCKED: "1", **told},
            pass_fds=(lock.fileno(),),
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ).returncode
    finally:
        signal.signal(signal.SIGINT, handler)


if __name__ == "__main__":
    sys.exit(run_command(main))
