"""Carries the records of jobs into MLflow, proves that all outputs are tracked, and opens the dashboard."""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dpar.errors import InputError
from dpar.files import EXPORTED, read_json, reseal, write_bytes
from dpar.mirror import audit, dashboard, status
from dpar.mirror import sync as mirror
from dpar.mirror.audit import graph_outputs
from dpar.mirror.store import URI_VARIABLE, Store, find_store
from dpar.statement import restated
from dpar.tracking.makers import accept
from dpar.tracking.places import CONFIG, results_around, results_folder
from dpar.workflow.options import AMOUNT, COUNT, PORT_NUMBER, Parser

PORT = 5000


def parser() -> argparse.ArgumentParser:
    """The options of `dpar track`."""
    options = Parser(prog="dpar track", description=__doc__, epilog="`dpar track ACTION --help` says more.")
    common = Parser(add_help=False)
    common.add_argument("--results", type=Path, help="results folder (default: the latest below results/)")
    common.add_argument("--uri", help=f"MLflow store (default: ${URI_VARIABLE}, or the results folder's own)")
    actions = options.add_subparsers(dest="action", required=True, metavar="ACTION")

    sync = actions.add_parser("sync", parents=[common], help="carry what is new into MLflow")
    sync.add_argument("--watch", type=AMOUNT, metavar="SECONDS", help="again and again")
    sync.add_argument("--until-pid", type=COUNT, metavar="PID", help="with --watch: end with that process")

    actions.add_parser("status", parents=[common], help="what each job last said, and what MLflow does not show yet")

    check = actions.add_parser("audit", parents=[common], help="prove that every output belongs to a finished run")
    check.add_argument("--snakefile", type=Path, default=Path("Snakefile"), help="the graph")
    check.add_argument("--outputs", type=Path, help="file with one output per line, instead of asking snakemake")

    taken = actions.add_parser("accept", help="take files as they are, though no job has left them so: a meant edit")
    taken.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="files, or folders with the files to take")

    actions.add_parser("rebuild", parents=[common], help="make the store again from the records")
    actions.add_parser("views", parents=[common], help="write the saved views again and list them")

    pages = actions.add_parser("ui", parents=[common], help="open the dashboard on this machine")
    pages.add_argument("--port", type=PORT_NUMBER, default=PORT, help="on this machine")
    pages.add_argument("--refresh", type=AMOUNT, default=15.0, metavar="SECONDS", help="between looks for news")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Does what the first argument says.

    Raises:
        InputError: the store, the results folder or the port cannot be used.
        SystemExit: with status 1 if the audit finds a file that is not tracked, or a record cannot be shown.
    """
    args = parser().parse_args(argv)
    if args.action == "accept":
        _accept(args.paths)
        return
    args.results = results_folder(args.results)
    store = find_store(args.results, args.uri)
    {"sync": _sync, "status": _status, "audit": _audit, "rebuild": _rebuild, "views": _views, "ui": _ui}[args.action](
        store, args
    )


def _accept(paths: Sequence[Path]) -> None:
    """Records that files are meant as they are; what lies in no results folder gets the seal that fits its content."""
    inside: dict[Path, list[Path]] = {}
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist; give files or folders of a results folder")
        if path.name == CONFIG and not (path.parent / EXPORTED).is_file():
            raise InputError(
                f"{path} is written anew by each run: change the experiment's YAML file, and run `dpar run` with that"
            )
        results = results_around(path / "any")
        if results is not None:
            inside.setdefault(results, []).append(Path(os.path.abspath(path)))
        elif _reseals(path):
            print(f"{path}: sealed as it is; it lies in no results folder, so that no record says so")
        else:
            raise InputError(f"{path} lies in no results folder with records, and carries no seal: nothing to accept")
    for results, given in inside.items():
        accepted = accept(results, given)
        for file in accepted:
            print(f"{file.path}: {(file.before or 'no record')[:12]} -> {file.now[:12]}, accepted by hand")
            if file.path.suffix == ".json" and not _is_json(file.path):
                print(f"warning: {file.path} is not JSON; what reads it will refuse it", file=sys.stderr)
        if not accepted:
            print(f"{', '.join(map(str, given))}: as recorded; nothing to accept")


def _reseals(path: Path) -> bool:
    from dpar.weights import export_of, has_lost_seal, seal_export  # which imports torch

    exported = export_of(path) if path.is_file() else None
    if exported is not None:
        before = (exported / EXPORTED).read_bytes()
        reseal(path, lost=has_lost_seal(path))
        seal_export(exported)
        return (exported / EXPORTED).read_bytes() != before
    if path.is_file() and (mended := restated(path)) is not None:
        write_bytes(*mended)
        return True
    return path.is_file() and _is_json(path) and reseal(path, lost=has_lost_seal(path))


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError):
        return False
    return True


def _sync(store: Store, args: argparse.Namespace) -> None:
    if args.watch is None:
        _show(mirror.sync(store))
        return
    os.nice(10)  # trainings go first
    with contextlib.suppress(KeyboardInterrupt):
        mirror.watch(store, args.watch, args.until_pid)


def _status(store: Store, args: argparse.Namespace) -> None:
    print(status.report(store))


def _audit(store: Store, args: argparse.Namespace) -> None:
    outputs = _listed(args.outputs) if args.outputs else _of_graph(args)
    if not outputs:
        raise InputError("there are no outputs to audit; is this the results folder of an experiment that has run?")
    findings = audit.audit(store, outputs)
    print(audit.report(findings))
    if any(finding.verdict not in audit.GOOD for finding in findings):
        sys.exit(1)


def _of_graph(args: argparse.Namespace) -> list[Path]:
    settings = args.results / "experiment.json"
    directory = Path(os.path.normpath(args.results / ".." / ".."))
    made = directory / "results" / read_json(settings)["name"]
    if not (made.is_dir() and made.samefile(args.results)):
        raise InputError(
            f"{args.results} has another name or place than a run gives it, {made}: put it there, or list its files "
            "with --outputs"
        )
    return graph_outputs(args.snakefile, settings, directory)


def _listed(file: Path) -> list[Path]:
    if not file.is_file():
        raise InputError(f"{file} does not exist; --outputs wants a text file with one output per line")
    return [Path(line) for line in file.read_text("utf-8").splitlines() if line.strip()]


def _rebuild(store: Store, args: argparse.Namespace) -> None:
    started = time.monotonic()
    counts = mirror.rebuild(store)
    print(f"{store.describe()} made again in {time.monotonic() - started:.1f} s")
    _show(counts)


def _views(store: Store, args: argparse.Namespace) -> None:
    mirror.sync(store)
    for title, address in dashboard.links(store, PORT):
        print(f"{title}\n    {address}")


def _ui(store: Store, args: argparse.Namespace) -> None:
    dashboard.run(store, args.port, refresh=args.refresh)


def _show(counts: mirror.Counts | None) -> None:
    print(counts)
    if counts and counts.problems:
        sys.exit(1)
