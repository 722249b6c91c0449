"""The lock of a results folder, and what is said before trainings are done again."""

import os
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

from dpar.errors import InputError
from dpar.experiment.smoke import SMOKES, Smoke
from dpar.files import process_lock

# Names the results that are locked for the Snakefile, which otherwise takes the lock itself.
LOCKED = "DPAR_RESULTS_LOCKED"
# Names the results that `dpar run` has compared with the experiment, so that the Snakefile does not say it again.
COMPARED = "DPAR_RESULTS_COMPARED"
# Set where finished trainings may be done again.
RETRAIN = "DPAR_RETRAIN"
# The run's name in Slurm, set by the profile.
SLURM_RUN = "DPAR_SLURM_RUN"
# The kind of smoke that is run, for the Snakefile and for the jobs of the run; empty: none.
SMOKE = "DPAR_SMOKE"


def smoke_unasked(targets: Collection[str]) -> Smoke | None:
    """The smoke that a run is for which nobody asked: under the Slurm profile, one that names no target.

    All tables of ImageNet take thousands of hours of a GPU; `all` is the target that names them.
    """
    return "short" if SLURM_RUN in os.environ and not targets else None


def smoke_of_run(targets: Callable[[], Collection[str]]) -> Smoke | None:
    """The kind of smoke that the Snakefile runs, by the environment or else by `smoke_unasked`; handed on to its jobs.

    Args:
        targets: gives those that snakemake was given, which its jobs are not.

    Raises:
        InputError: there is no such kind.
    """
    if SMOKE not in os.environ:
        os.environ[SMOKE] = (smoke_unasked(targets()) if SLURM_RUN in os.environ else None) or ""
    kind = os.environ[SMOKE]
    if kind not in ("", *SMOKES):
        raise InputError(f"{SMOKE}: found {kind!r}; expected {' or '.join(SMOKES)}")
    return next((smoke for smoke in SMOKES if smoke == kind), None)


def run_lock(results: Path) -> AbstractContextManager[IO[str]]:
    """The lock of the experiment's results, inherited by snakemake so that it lasts as long as the graph runs."""
    refusal = f"another run into {results} is going on; wait for its end or stop it first"
    return process_lock(results / "tracking" / "run.lock", refusal)


def retraining(again: Mapping[str, str], *, meant: bool) -> str:
    """The message before finished trainings are done again.

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
