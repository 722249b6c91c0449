"""The command line program `dpar`: one module under dpar/commands per subcommand."""

import sys
from collections.abc import Sequence
from importlib import import_module

from dpar import __version__
from dpar.errors import did_you_mean, run_command

COMMANDS = {
    "init": "look at a folder of images and write an experiment that fits it",
    "check": "say all that would stop a run, before it starts",
    "run": "run an experiment: everything from images to the report",
    "status": "how far a run is: done, running, failed",
    "track": "carry records into MLflow, audit them, open the dashboard",
    "lineage": "what a file was made from, back to images, code and settings",
    "convert": "an official file of LlamaGen as a model folder",
    "export": "a trained model as one folder that draws anywhere, with its card",
    "sample": "draw images from a trained model",
    "play": "a page in the browser to draw with a trained model",
    "patchify": "patch boundaries of stored entropies",
    "table": "a table from what has been made so far, and the commands for what is missing",
    "plan": "GPU-hours, storage and time of each table, before anything is run",
    "info": "parameters and cost of a model (Tables 1 and 8)",
    "evaluate": "every metric of a set of samples against a reference, with all conditions",
    "make-reference": "statistics and images of a data set, in the format of ADM's reference files",
    "schema": "the JSON schema of experiment files, for editors",
    "bench": "how fast training, sampling and reading are on this machine",
    "metrics": "Frechet distance, KID, precision, recall and Inception Score of stored features",
}


def usage() -> str:
    """Help of the program."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    return "usage: dpar COMMAND [options]\n\ncommands:\n" + "\n".join(lines) + "\n\n`dpar COMMAND --help` says more."


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status of `dpar COMMAND ...`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] in (["--version"], ["-V"]):
        print(f"dpar {__version__}")
        return 0
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] not in COMMANDS:
        near = did_you_mean(arguments[0], COMMANDS)
        print(f"error: there is no command {arguments[0]!r}{near}\n\n{usage()}", file=sys.stderr)
        return 2
    return run_command(import_module(f"dpar.commands.{arguments[0].replace('-', '_')}").main, arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
