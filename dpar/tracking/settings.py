"""Whether the `experiment.json` of a results folder is the one that was written for it."""

import os
from collections.abc import Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from dpar import files
from dpar.errors import InputError
from dpar.tracking.places import CONFIG, spool_root

RUNNING = "DPAR_EXPERIMENT"
"""Names the run that is going on, for its jobs: the digest of its experiment, and its results folder."""
_LOOKED_AT = 100  # files next to it


def running(experiment: Mapping[str, Any], results: str | Path) -> str:
    """The value of `RUNNING` for a run of `experiment` into a folder."""
    return f"{files.digest(dict(experiment))} {os.path.realpath(results)}"


def check_settings(path: Path, *, by_job: bool) -> dict[str, Any]:
    """The contents of the resolved experiment at `path`, if it is that of its folder.

    A folder may be renamed, and an experiment with it: either name fits. What is called otherwise than the experiment
    of its records, or, in a job, than its folder in `results/`, is another's.

    Args:
        by_job: whether a job of the graph asks, which works in `results/NAME`.

    Raises:
        InputError: it is missing or damaged, has lost its seal, or is another experiment's or another run's.
    """
    settings = files.read_json(path, kind=dict)
    again = "each `dpar run` writes it anew from the experiment's YAML file: run again"
    if path.name != CONFIG:
        return settings
    results = path.absolute().parent
    in_graph = results.parent.name == "results"
    recorded = next(spool_root(results).glob(f"*/*/{CONFIG}"), None)
    others = [recorded] if recorded else islice(results.glob("*/*.json"), _LOOKED_AT if in_graph else 0)
    if not files.is_sealed(path) and any(map(files.seems_sealed, others)):
        raise InputError(f"{path} has lost its seal, so that nobody knows whether it was changed; {again}")
    name, known = settings.get("name"), None
    if recorded is not None:
        with suppress(InputError):
            known = files.read_json(recorded, kind=dict).get("name")
    elif by_job and in_graph:
        known = results.name
    if known is not None and name not in (known, results.name):
        named = (
            f"name the folder {name!r} again, or set `name: {results.name}` in the experiment's YAML file and run that"
        )
        raise InputError(
            f"{path} is that of the experiment {name!r}, in the results of {known!r}; "
            + (again if recorded else f"where the folder was renamed, {named}; else {again}")
        )
    digest, _, where = os.environ.get(RUNNING, "").partition(" ")
    if by_job and where == os.path.realpath(results) and digest != files.digest(settings):
        raise InputError(f"{path} is not the experiment that is running, with which it was written; {again}")
    return settings
