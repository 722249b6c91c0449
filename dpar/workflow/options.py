"""Options that commands share: the experiment, single settings of it, targets, cores; and help with all defaults."""

import argparse
import math
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpar.data.workers import cores
from dpar.experiment.composing import Places
from dpar.experiment.settings import Experiment
from dpar.experiment.smoke import SMOKES, composed

DEFAULT_EXPERIMENT = Path("config/demo.yaml")


def limited(kind: Callable[[str], Any], least: float, most: float, expected: str) -> Callable[[str], Any]:
    """A type of flag: numbers from `least` to `most`, of which NaN is none.

    Args:
        kind: `int` or `float`.
        expected: the range in words.
    """

    def parse(text: str) -> Any:
        if not least <= (value := kind(text)) <= most:
            raise argparse.ArgumentTypeError(f"found {text}, expected {expected}")
        return value

    parse.__name__ = kind.__name__
    return parse


COUNT = limited(int, 1, 2**53, "a whole number of at least 1")
AMOUNT = limited(float, math.ulp(0.0), sys.float_info.max, "a finite number above 0")
SHARE = limited(float, math.ulp(0.0), 1, "a number above 0, up to 1")
LIMIT = limited(float, 0, math.inf, "a number of at least 0")
SEED = limited(int, 0, 2**63 - 1, "a whole number from 0 to 2**63 - 1")
SIDE = limited(int, 1, 8192, "a number of pixels from 1 to 8192")
PORT_NUMBER = limited(int, 0, 65535, "a whole number from 0 to 65535")


class Help(argparse.HelpFormatter):
    """Help in which every default stands."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        nothing = (None, False, argparse.SUPPRESS)  # compared as such: 0 is a default to be said
        silent = any(action.default is value for value in nothing) or isinstance(action.default, list)
        return text if silent or "default" in text or not action.option_strings else f"{text} (default: %(default)s)"


class RawHelp(Help, argparse.RawDescriptionHelpFormatter):
    """The same under a description with lines of its own."""


class Parser(argparse.ArgumentParser):
    """A parser of a command, and of what it has below it."""

    def __init__(self, *args: Any, **kwargs: Any):
        """As `argparse.ArgumentParser`."""
        super().__init__(*args, **{"formatter_class": Help, **kwargs})


class _Once(argparse.Action):
    """A value that is given once; of two, argparse takes the last without a word."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        """Stores it."""
        if (before := getattr(namespace, self.dest)) is not self.default:
            raise argparse.ArgumentError(
                self,
                f"given twice, {before} and {values}; give one: a file that begins `extends: FILE` is over another",
            )
        setattr(namespace, self.dest, values)


def add_experiment(flags: argparse.ArgumentParser, default: Path | None = DEFAULT_EXPERIMENT, said: str = "") -> None:
    """Adds `--config`, `--set` and `--smoke`.

    Args:
        default: None where something else, which the help `said`, decides which experiment it is.
    """
    help = f"the experiment (default: {said or default})"
    flags.add_argument("--config", action=_Once, type=Path, default=default, metavar="FILE", help=help)
    flags.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="one setting of it, such as sampling.cfg_scale=2.5; may be given again",
    )  # fmt: skip
    flags.add_argument(
        "--smoke", nargs="?", choices=SMOKES, const="short", metavar="tiny",
        help="the experiment cut to a few images, steps and samples, in results/NAME.smoke; tiny: small networks too",
    )  # fmt: skip


def add_target(flags: argparse.ArgumentParser) -> None:
    """Adds `--target`."""
    flags.add_argument(
        "--target", nargs="+", default=[], metavar="TARGET", help="such as table4 figure5 (default: everything)"
    )


def add_cores(flags: argparse.ArgumentParser) -> None:
    """Adds `--cores`, of which a profile may decide."""
    help = f"CPU cores to use (default: the {cores()} that this process may use, or the profile's)"
    flags.add_argument("--cores", type=COUNT, metavar="N", help=help)


def add_directory(flags: argparse.ArgumentParser) -> None:
    """Adds `--directory`."""
    flags.add_argument("--directory", type=Path, default=Path(), metavar="FOLDER", help="where results/ lies")


def run_of(args: argparse.Namespace) -> str:
    """The command that runs the experiment of `--config`, `--set`, `--smoke` and `--directory`, as a shell takes it."""
    words = ["dpar", "run", "--config", str(args.config), *(word for change in args.set for word in ("--set", change))]
    words += [] if args.smoke is None else ["--smoke"] if args.smoke == "short" else ["--smoke", args.smoke]
    return shlex.join([*words, *([] if args.directory == Path() else ["--directory", str(args.directory)])])


def read_experiment(args: argparse.Namespace) -> tuple[Experiment, Places]:
    """The experiment of `--config` and `--set`, and where each of its settings is written.

    Raises:
        InputError: it is not valid.
    """
    return composed([args.config], args.set, smoke=args.smoke)
