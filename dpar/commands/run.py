"""Runs an experiment from images to the report; the same command again continues after any interruption."""

import argparse
import io
import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stderr
from functools import partial
from pathlib import Path
from typing import IO

from dpar.data.workers import cores
from dpar.errors import InputError, run_command
from dpar.experiment.composing import CHANGES, Places
from dpar.experiment.settings import Experiment
from dpar.experiment.smoke import composed
from dpar.files import check_writable, read_json, unmarked, write_json
from dpar.mirror.store import find_store
from dpar.report.targets import file_refusal, output_patterns, refusal, targets
from dpar.tracking.places import CONFIG
from dpar.train.restarts import restarts
from dpar.workflow import journal
from dpar.workflow.announcement import BUDGET, approved, said_of_smoke, somebody_asks
from dpar.workflow.checks import refuse
from dpar.workflow.options import (
    DEFAULT_EXPERIMENT,
    LIMIT,
    Parser,
    add_cores,
    add_directory,
    add_experiment,
    add_target,
    read_experiment,
)
from dpar.workflow.provenance import expect_records
from dpar.workflow.recipes import RECIPES
from dpar.workflow.run import COMPARED, LOCKED, RETRAIN, SMOKE, run_lock, smoke_unasked
from dpar.workflow.supervision import Supervised
from dpar.workflow.user_paths import expect_same_files
from dpar.workflow.view import watching

# Not `code`: Snakemake would retrain a model for a blank in a shell command; dpar/workflow/recipes.py says what is out
# of date.
TRIGGERS = ("mtime", "params", "input", "software-env")

LAST_SAID = 25  # lines of Snakemake, where no job says what went wrong


def parser() -> argparse.ArgumentParser:
    """The options of `dpar run`."""
    options = Parser(prog="dpar run", description=__doc__)
    add_experiment(options, None, f"{DEFAULT_EXPERIMENT}, or that of a --profile")
    options.add_argument(
        "--profile", metavar="NAME",
        help="of snakemake: its experiment, unless --config is given; slurm without --target is the smoke",
    )  # fmt: skip
    add_target(options)
    add_cores(options)
    add_directory(options)
    options.add_argument("-n", "--dry-run", action="store_true", help="list every job with its reason, and run none")
    options.add_argument(
        "--budget", type=LIMIT, metavar="HOURS", help="of a GPU, or of this machine: stop before a run that takes more"
    )
    options.add_argument("--verbose", action="store_true", help="show all that snakemake says, not a line per job")
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
    snakemake, experiment, results = prepared(args)
    say_changes(results)
    expect_same_files(experiment, results)
    dry = args.dry_run or bool({"-n", "--dry-run", "--dryrun"} & set(args.snakemake))
    if dry and experiment.is_smoke:
        print(said_of_smoke(experiment), file=sys.stderr)
    expect_records(results, experiment.model_dump(mode="json"), args.snakemake)
    told = {SMOKE: args.smoke or "", COMPARED: os.path.realpath(results)} | ({RETRAIN: "1"} if args.retrain else {})
    told |= {} if args.budget is None else {BUDGET: str(args.budget)}
    began = time.time()
    with nullcontext() if dry else run_lock(results) as lock:  # a dry run writes nothing
        command = [sys.executable, "-m", "snakemake", *snakemake]
        start = _run if dry or args.verbose else partial(_watched, results)
        try:
            status = start(command, lock, told)
            if status and (meant := wanted_budget(results, began)) is not None:
                status = start(command, lock, told | {BUDGET: str(meant)})
        finally:
            for message in restarts(results / "state", began):
                print(f"in this run: {message}", file=sys.stderr)
        if not (status or dry or args.target or args.smoke or args.snakemake):
            keep_settings(results, experiment)
    if status:
        raise InputError(last_words(results, began, status))
    if not dry:
        print(where_to_look(results))


def keep_settings(results: Path, experiment: Experiment) -> None:
    """Writes `experiment.json` anew after a whole run; one that had nothing to do has not written it.

    What differs makes nothing out of date, such as how often a training is validated.
    """
    path, now = results / CONFIG, experiment.model_dump(mode="json")
    if path.is_file() and unmarked(read_json(path)) != now:
        write_json(path, now)


def prepared(args: argparse.Namespace) -> tuple[list[str], Experiment, Path]:
    """Arguments of snakemake, the experiment that it runs, and its results, after all that a look shows.

    A run under the Slurm profile that names no target becomes the smoke, and says so.

    Raises:
        InputError: the experiment or the tracking address is not valid, or a target is none.
    """
    if not Path("Snakefile").is_file():
        raise InputError(f"there is no Snakefile in {Path.cwd()}; call `dpar run` from the top of the repository")
    if args.config is None and args.profile is None:
        args.config = DEFAULT_EXPERIMENT
    if args.config is not None:
        read_experiment(args)
    snakemake = ["--directory", str(args.directory)]
    snakemake += [] if args.config is None else ["--configfile", str(args.config.resolve())]
    snakemake += [] if args.profile is None else ["--profile", args.profile]
    # Snakemake's own lock outlives a run that is killed, and covers other experiments' results too; ours does not.
    # An option ends the list of triggers, to which a target would otherwise be added.
    wanted = args.cores or (cores() if args.profile is None else None)
    snakemake += ["--cores", str(wanted)] if wanted else []
    snakemake += ["--rerun-triggers", *TRIGGERS, "--nolock", "--rerun-incomplete"]
    snakemake = [*args.target, *snakemake, *["--dry-run"] * args.dry_run, *args.snakemake]
    experiment, places, folder = what_runs(snakemake, args)
    refuse(experiment, to_make=(), places=places)
    check_targets(experiment, args.target)
    check_writable(folder, "snakemake keeps its notes, also in a dry run")
    results = folder / "results" / experiment.name
    find_store(results)  # and a tracking address with a typo
    return snakemake, experiment, results


def as_config(changes: Sequence[str]) -> str:
    """The changes of `--set` as a word of snakemake's `--config`, which hands them on to its jobs.

    Raises:
        InputError: a change has letters that do not arrive as they are.
    """
    for change in changes:
        if "\\" in change or {"'", '"'} <= {*change} or not change.isprintable():
            raise InputError(f"--set {change!r}: backslashes and two kinds of quotes belong in a file; write it there")
    return f"{CHANGES}={json.dumps(list(changes), ensure_ascii=False)}"


def check_targets(experiment: Experiment, names: Sequence[str]) -> None:
    """Refuses names that are neither a target of the experiment nor a rule, and files that no rule makes.

    Raises:
        InputError: naming the target or the file that may have been meant.
    """
    known = {*targets(experiment), *RECIPES, "all"}
    unknown = [name for name in names if name not in known]
    if not unknown:
        return
    rules = [path.read_text("utf-8") for path in sorted(Path("workflow/rules").glob("*.smk"))]
    patterns = output_patterns(experiment, rules)
    for name in unknown:
        is_file = "/" in name or any(re.fullmatch(pattern, name) for pattern in patterns)
        if is_file and patterns and (refused := file_refusal(name, experiment, patterns)):
            raise InputError(f"--target: {refused}")
        if not is_file:
            raise InputError(f"--target: {refusal(name, experiment, Path('config'), '--config config')}")


def what_runs(arguments: list[str], args: argparse.Namespace) -> tuple[Experiment, Places, Path]:
    """The experiment that snakemake runs with these arguments, where its settings are written, and the folder.

    Args:
        arguments: those of snakemake, to which the changes of `--set` are added; of several `--config` the last counts.
        args: of this command, whose smoke is set where nobody asked for it.

    Raises:
        InputError: the experiment is not valid.
        SystemExit: snakemake does not know an argument.
    """
    from snakemake.cli import parse_args, parse_config

    said = io.StringIO()
    try:
        with redirect_stderr(said):
            _, given = parse_args(arguments)
        own = [*(given.config or []), *([as_config(args.set)] if args.set else [])]
        config = parse_config(own)
    except ValueError as error:
        raise InputError(f"--config: {error}") from None
    except SystemExit:
        print(said.getvalue(), file=sys.stderr)
        raise
    if args.set:
        arguments += ["--config", *own]
    if args.smoke is None and (smoke := smoke_unasked(given.targets)):
        args.smoke = smoke
        print("no target is named: this is the smoke; `--target all` names everything", file=sys.stderr)
    return *composed(given.configfile, config=config, smoke=args.smoke), Path(given.directory or "")


def wanted_budget(results: Path, began: float) -> int | None:
    """The budget of a run that was refused for its cost and that the person at the terminal wants all the same.

    Args:
        began: when it was started, seconds since 1970.
    """
    state = journal.read(results)
    if state is None or state.began < began or state.budget is None or not somebody_asks():
        return None
    return state.budget if approved(f"{state.refused}".partition(";")[0]) else None


def last_words(results: Path, began: float, status: int) -> str:
    """Why a run stopped: what was refused, or the end of the logs of what failed.

    Args:
        began: when it was started, seconds since 1970.
        status: Snakemake's exit status.
    """
    from dpar.workflow.room import no_space  # imports PyTorch, which a run that succeeds does not need

    state = journal.read(results)
    full = no_space(results)
    if state is None or state.began < began:
        return (
            f"the run stopped before its end (snakemake's exit status {status}){full}; see the first error above, mend "
            "its cause and run the same command again: finished work is kept"
        )
    if state.refused is not None:
        return state.refused
    told = "".join(f"\n{line}" for line in journal.failures(state, results.parent.parent))
    return (
        f"the run stopped before its end, with {state.done} of {sum(state.planned.values())} jobs done{full}{told}\n"
        "mend the cause and run the same command again: finished work is kept"
    )


def _watched(results: Path, command: Sequence[str], lock: IO[str] | None, told: Mapping[str, str]) -> int:
    """As `_run`, with a view of its progress; the full output goes to a log."""
    path = results / "logs" / "run.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    print(f"full log: {path}; progress from another shell: `dpar status`", file=sys.stderr)
    began = time.time()
    with open(path, "wb") as log, watching(results, path):
        status = _run(command, lock, told, stdout=log, stderr=log)
    state = journal.read(results)
    if status and (state is None or state.began < began):  # of which nothing else is known
        print("\n".join(path.read_text("utf-8", errors="replace").splitlines()[-LAST_SAID:]), file=sys.stderr)
    return status


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


def _run(command: Sequence[str], lock: IO[str] | None, told: Mapping[str, str], **streams: IO[bytes]) -> int:
    """Exit status of `command`; who asks this process to stop asks it and its jobs, which save what they have.

    Args:
        lock: of the results, which the command inherits; None where it writes none.
    """
    if lock is not None:
        told = {**told, LOCKED: str(Path(lock.name).resolve().parents[1])}
    passed = () if lock is None else (lock.fileno(),)
    running = Supervised(command, env={**os.environ, **told}, pass_fds=passed, **streams)
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
