"""Shows what a file or a row of a table was made from: every job back to images, code and settings."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dpar.tracking import lineage
from dpar.tracking.places import results_folder
from dpar.workflow.options import Parser


def parser() -> argparse.ArgumentParser:
    """The options of `dpar lineage`."""
    options = Parser(prog="dpar lineage", description=__doc__)
    options.add_argument(
        "what", metavar="FILE|TABLE:ROW", help="a file or folder of a results folder, or a table's row"
    )
    options.add_argument("--results", type=Path, help="the results folder (default: the file's, or the latest)")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the lineage.

    Raises:
        InputError: nothing is known about the file or row.
    """
    args = parser().parse_args(argv)
    path = Path(args.what)
    if path.exists() or ":" not in args.what:
        print(lineage.of_file(path, args.results))
    else:
        table, _, row = args.what.partition(":")
        print(lineage.of_row(table, row, results_folder(args.results)))
