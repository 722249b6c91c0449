"""Writes a first page before anything is measured: samples of every model, and the patches of held-out images."""

import sys
from collections.abc import Sequence

from dpar.data.classes import Classes
from dpar.errors import run_command
from dpar.files import write_text
from dpar.report.page import Section, caption, lead, page
from dpar.workflow import jobs
from dpar.workflow.stage import Stage, flag

TITLES = {"samples": "Samples", "entropy_maps": "Patches"}

STAGE = Stage(
    "write_first_report",
    __doc__,
    flag("--figures", "samples and entropy maps", nargs="+"),
    flag("--captions", "folder of FIGURE.rst: workflow/report"),
    flag("--output"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage."""
    run = STAGE.start(argv)
    args, experiment = run.args, run.experiment
    classes = Classes.of_images(experiment.images, args.experiment.with_name("index") / "train.json")
    with run.job(inputs=jobs.figures(args.figures), outputs=[args.output]) as job:
        sections = [
            Section(TITLES[path.stem], path.stem).picture(path, caption(args.captions, path.stem))
            for path in args.figures
        ]
        sections[0].text("Nothing is measured yet: the measurements come with report.html, in the same folder.")
        write_text(args.output, page(f"DPAR · {experiment.name}, first pictures", lead(experiment, classes), sections))
        job.figure(args.output)
        print(f"first pictures: {args.output}")


if __name__ == "__main__":
    sys.exit(run_command(main))
