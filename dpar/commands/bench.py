"""The speed of training and sampling on this machine; docs/benchmarks.md says what was measured and how to read it."""

import argparse
from collections.abc import Sequence
from importlib import import_module

from dpar.workflow.options import Parser, RawHelp

BENCHMARKS = {
    "train": "one optimizer step of DPAR compared with one of LlamaGen of the same size",
    "data": "codes from shards to batches, compared with what training consumes",
    "gpu_check": "all of it on one GPU in eight minutes, and whether it computes what a CPU does",
    "sample": "images per second, compared with Algorithm 2 as written and with LlamaGen",
    "roofline": "time per token on a GPU by a roofline from counted kernels, without one",
}


def parser() -> argparse.ArgumentParser:
    """The flags of this command; those of a benchmark are its own module's."""
    flags = Parser(
        prog="dpar bench",
        description=__doc__,
        formatter_class=RawHelp,
        epilog="benchmarks:\n"
        + "\n".join(f"  {name:10}{text}" for name, text in BENCHMARKS.items())
        + "\n\n`dpar bench BENCHMARK --help` says more.",
    )
    flags.add_argument("benchmark", metavar="BENCHMARK", choices=BENCHMARKS)
    flags.add_argument("options", nargs=argparse.REMAINDER, help="of the benchmark")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark that the first argument names, on the other arguments."""
    args = parser().parse_args(argv)
    import_module(f"dpar.benchmarks.{args.benchmark}").main(args.options)
