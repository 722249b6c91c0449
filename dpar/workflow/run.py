"""The lock of a results folder, and what is said before trainings are done again."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

from dpar.files import process_lock

# Names the results that are locked for the Snakefile, which otherwise takes the lock itself.
LOCKED = "DPAR_RESULTS_LOCKED"


# Set where finished trainings may be done again.
RETRAIN = "DPAR_RETRAIN"


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
