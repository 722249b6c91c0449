"""The frame of all stages: flags, the experiment they name, and the record of the job.

    STAGE = Stage("score_entropies", __doc__, flag("--shard", "a shard of codes"), flag("--output", "with entropies"))

    def main(argv: Sequence[str] | None = None) -> None:
        run = STAGE.start(argv)
        with run.job(inputs=..., outputs=[run.args.output]) as job:
            ...

A flag is an input or an output of the stage's rule; numbers come from the experiment.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dpar import tracking
from dpar.experiment.loading import load_experiment
from dpar.experiment.settings import Experiment
from dpar.tracking.hashes import Artefact
from dpar.tracking.makers import Wanted
from dpar.tracking.spool import Value

Flag = tuple[str, Mapping[str, Any]]
"""A flag of a stage: its name, and how `argparse` reads it."""


def flag(name: str, help: str | None = None, **options: Any) -> Flag:
    """A path that has to be given, unless `options` (those of `add_argument`) say otherwise."""
    if "action" in options:
        return name, {"help": help, **options}
    return name, {"type": Path, "required": "default" not in options, "help": help, **options}


NETWORK = flag("--network", "or gates/NAME, one of the experiment's gates", type=str, default="entropy_model")
RESTART = flag("--restart", "set a state of other settings aside and begin anew", action="store_true")
SPLIT = flag("--split", type=str, choices=("train", "val"))
THRESHOLDS = flag("--thresholds", "what calibrate_threshold wrote", nargs="*", default=[])


@dataclass(frozen=True)
class Run:
    """A run of a stage.

    Attributes:
        rule: the stage's name, which is its rule's.
        args: the values of its flags.
    """

    rule: str
    args: argparse.Namespace

    @cached_property
    def experiment(self) -> Experiment:
        """The one at `args.experiment`.

        Raises:
            InputError: it cannot be read, or is not valid.
        """
        return load_experiment(self.args.experiment)

    def job(
        self,
        part: str | None = None,
        *,
        inputs: Iterable[Path | Wanted | Artefact] = (),
        outputs: Iterable[Path],
        params: Mapping[str, Value] | None = None,
    ) -> AbstractContextManager[tracking.Job]:
        """The record of the job (`tracking.job`), called RULE, or RULE[PART] where a rule has several jobs."""
        return tracking.job(
            rule=self.rule,
            experiment=self.args.experiment,
            name=self.rule if part is None else f"{self.rule}[{part}]",
            inputs=inputs,
            outputs=outputs,
            params=params,
        )

    def check(self, inputs: Sequence[Wanted]) -> None:
        """Refuses inputs that have to be read before the job begins, as the job would."""
        tracking.check(self.args.experiment, inputs)


class Stage:
    """A stage of the workflow.

    Args:
        rule: its name, which is its rule's.
        description: what it does, for `--help`.
        flags: in addition to `--experiment`.
    """

    def __init__(self, rule: str, description: str | None, *flags: Flag):
        self.rule, self.description, self.flags = rule, description, (flag("--experiment"), *flags)

    def start(self, argv: Sequence[str] | None = None) -> Run:
        """A run with these arguments, by default the command line's.

        Raises:
            SystemExit: with status 2, flags are missing or unknown.
        """
        parser = argparse.ArgumentParser(prog=self.rule, description=self.description)
        for name, options in self.flags:
            parser.add_argument(name, **options)
        return Run(self.rule, parser.parse_args(argv))
