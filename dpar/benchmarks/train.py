"""One optimizer step of DPAR beside one of LlamaGen of the same size: time, where it goes, and memory."""

import argparse
from collections.abc import Sequence


def parser() -> argparse.ArgumentParser:
    """The flags of this benchmark."""
    flags = argparse.ArgumentParser(prog="dpar bench train", description=__doc__)
    flags.add_argument("--json", action="store_true", help="print JSON")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Times the steps and prints what was found."""
    parser().parse_args(argv)
