"""Writes the report: one page that needs no other file."""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from html import unescape
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd

from dpar import tracking
from dpar.data.classes import Classes
from dpar.errors import InputError, run_command
from dpar.experiment.cells import merged_thresholds
from dpar.experiment.settings import Experiment, Table
from dpar.files import read_json, read_json_lines, write_text
from dpar.report import gates
from dpar.report.figures import Panel, curves
from dpar.report.measured import Comparison, Floor, read_measured
from dpar.report.page import Section, caption, lead, page
from dpar.report.tables import read_table, readable, repeated
from dpar.report.verdict import verdict
from dpar.tracking.environment import git_commit, versions
from dpar.tracking.ledger import Ledger
from dpar.workflow import jobs
from dpar.workflow.announcement import said_of_smoke
from dpar.workflow.stage import THRESHOLDS, Stage, flag

STAGE = Stage(
    "write_report",
    __doc__,
    flag("--tables", "tables/TABLE.csv ...", nargs="+"),
    flag("--models", "tables/table1.csv and table8.csv", nargs="+"),
    flag("--ablations", "figures/TABLE.png ...", nargs="+"),
    flag("--paretos", "figures/pareto/TABLE.png ...", nargs="*", default=[]),
    flag("--figures", "samples, completions, entropy maps, compute, and others", nargs="+"),
    flag("--captions", "folder of FIGURE.rst: workflow/report"),
    flag("--gates", "gates/comparison.json, if there are gates", nargs="*", default=[]),
    flag("--tokenizer", "tokenizer/report.json"),
    flag("--reconstructions"),
    flag("--noise-floor"),
    THRESHOLDS,
    flag("--histories", "models/MODEL/STATE/history.jsonl ...", nargs="+"),
    flag("--output"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage."""
    run = STAGE.start(argv)
    args, experiment = run.args, run.experiment
    inputs = [
        *jobs.by_stem("make_table", _with_notes(args.tables)),
        *tracking.made_by("describe_models", *_with_notes(args.models)),
        *jobs.by_stem("plot_ablation", args.ablations),
        *jobs.by_stem("plot_pareto", args.paretos),
        *jobs.figures(args.figures),
        *tracking.made_by("compare_gates", *args.gates),
        *tracking.made_by("evaluate_tokenizer", args.tokenizer, args.reconstructions),
        *tracking.made_by("measure_noise_floor", args.noise_floor),
        *jobs.thresholds(experiment, args.thresholds),
        *jobs.histories(args.histories),
    ]
    with run.job(
        inputs=inputs,
        outputs=[args.output],
        params={"tables": ",".join(experiment.tables)},
    ) as job:
        floor = read_measured(args.noise_floor, Floor)
        tables = {path.stem: read_table(path) for path in args.tables}
        found = [said_of_smoke(experiment)] if experiment.is_smoke else verdict(experiment, tables, floor["metric"])
        text = page(
            f"DPAR · {experiment.name}",
            lead(experiment, Classes.of_images(experiment.images, args.experiment.with_name("index") / "train.json")),
            sections(experiment, args, floor),
            verdict=found,
            made=made_line(Ledger(args.experiment.parent)),
        )
        write_text(args.output, text)
        print("\n".join(found))
        job.figure(args.output)
        print(f"report: {args.output}")


def _with_notes(tables: Sequence[Path]) -> list[Path]:
    """Tables, and the files next to them that their notes are taken from."""
    return [path for table in tables for path in (table, table.with_suffix(".md"))]


def made_line(ledger: Ledger) -> str:
    """When the results were made, by which code, on which machines and in which time, as far as jobs recorded it."""
    made = {job.name: job for job in ledger.manifests}.values()  # the last of each name
    commits = dict.fromkeys(f"{(job.commit or 'none')[:10]}{'+changes' * job.dirty}" for job in made)
    machines = dict.fromkeys(place for job in made if (place := computer(job.machine)))
    seconds = sum(job.wall_s for job in made)
    parts = [
        time.strftime("%d %B %Y").lstrip("0"),
        f"commit {', '.join(commits)}" if commits else "",
        "; ".join(machines),
        f"{len(made)} jobs, {duration(seconds)} one after the other" if commits else "",
    ]
    return " · ".join(filter(None, parts))


def computer(machine: Mapping[str, str]) -> str:
    """The processor and the GPUs that a job recorded, in words; empty for jobs that recorded none."""
    return ", ".join(machine[part] for part in ("processor", "gpus") if part in machine)


def duration(seconds: float) -> str:
    """A duration in the two largest units that matter."""
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min" if minutes else f"{seconds:.0f} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def sections(experiment: Experiment, args: argparse.Namespace, floor: dict[str, Any]) -> list[Section]:
    """The page's sections in reading order."""
    figures = {path.stem: path for path in args.figures}

    def pictured(title: str, name: str) -> Section:
        return Section(title, name).picture(figures[name], caption(args.captions, name))

    found = [pictured("Samples", "samples"), pictured("Completions", "completions")]
    found += [Section(f.title, name).picture(figures[name], f.title) for name, f in experiment.figures.items()]
    ablations, paretos = ({path.stem: path for path in paths} for paths in (args.ablations, args.paretos))
    for path in args.tables:
        table, frame = experiment.tables[path.stem], read_table(path)
        section = Section(table.title, path.stem).table(readable(frame, floor["metric"]), measurements(frame))
        section.points(conditions(path.with_suffix(".md")))
        section.picture(ablations[path.stem], f"{table.title}. {key_of(table, repeated(experiment))}")
        if path.stem in paretos:
            section.picture(paretos[path.stem], f"{table.title}. {caption(args.captions, 'pareto')}")
        found.append(section)
    found.append(
        Section("Patches", "patches")
        .text("Where the entropy exceeds the threshold a new patch begins: flat regions merge, busy ones do not.")
        .picture(figures["entropy_maps"], caption(args.captions, "entropy_maps"))
        .table(thresholds_table(merged_thresholds(args.thresholds)))
    )
    for comparison in (read_measured(path, Comparison) for path in args.gates):
        section = Section(gates.TITLE, "placing").table(gates.readable(comparison))
        found.append(section.points(gates.notes(comparison)))
    models = Section("Models", "models")
    for path in args.models:
        models.table(read_table(path).map(shown)).points(conditions(path.with_suffix(".md")))
    found += [models, pictured("Cost", "compute")]
    found.append(training_section(args.histories))
    found.append(
        Section("Tokenizer", "tokenizer")
        .facts(
            {
                key: shown(value)
                for key, value in read_json(args.tokenizer, kind=dict).items()
                if not isinstance(value, dict | list)
            }
        )
        .picture(args.reconstructions, caption(args.captions, "reconstructions"))
    )
    found.append(
        Section("Conditions", "conditions")
        .facts({"commit": commit_line(), **versions()})
        .code(experiment.model_dump_json(indent=2), "the experiment, with every default")
    )
    return found


def measurements(frame: pd.DataFrame) -> list[str | None]:
    """Of each row of a table the file of its first measurement, next to the page; quoted rows have none."""
    return [None if pd.isna(cell) else f"metrics/{cell}" for cell in frame["cell"]]


def key_of(table: Table, spread: str) -> str:
    """Legend of the marks in the figure of a table; `spread` names what a standard deviation is over."""
    if table.is_grid:
        return (
            f"A frame marks the smallest value, a broken one what cannot be told from it by its spread over {spread}."
        )
    if table.is_training_curve:
        return f"Bands are standard deviations over {spread}; hollow marks are the paper's, where it prints the number."
    return f"Bars are standard deviations over {spread}; the dotted line is real images against real images."


def commit_line() -> str:
    """The commit of this package, for people."""
    commit, changed = git_commit()
    return f"{commit or 'not a checkout'}{' with uncommitted changes' if changed else ''}"


def conditions(markdown: Path) -> list[str]:
    """The notes that make_table wrote under the table.

    Raises:
        InputError: the table's Markdown file is missing.
    """
    if not markdown.is_file():
        raise InputError(f"{markdown} is missing next to its CSV file; run make_table again")
    return [
        unescape(line.removeprefix("- ").replace("`", ""))
        for line in markdown.read_text("utf-8").splitlines()
        if line.startswith("- ")
    ]


def thresholds_table(thresholds: dict[str, Any]) -> pd.DataFrame:
    """The calibrated thresholds, a row a target."""
    rows = [
        {
            "Wanted P_avg": target,
            "E_Th (nats)": f"{found['threshold']:.4f}",
            "P_avg reached": f"{found['achieved']:.4f}",
        }
        for target, found in thresholds["p_avg"].items()
    ]
    return pd.DataFrame(rows)


def training_curves(histories: Sequence[Path]) -> dict[str, tuple[list[float], list[float], list[float]]]:
    """Model -> steps, minutes and validation NLL (nats/token), of its longest history: each holds all earlier ones.

    Minutes are those of the steps alone, as they were measured: validation, saving and starts do not count.
    """
    series: dict[str, tuple[list[float], list[float], list[float]]] = {}
    for path in histories:
        points, step, minutes = [], 0, 0.0
        for record in read_json_lines(path):
            if "perf/step_ms" in record:
                minutes += (record["step"] - step) * record["perf/step_ms"] / 60_000
                step = record["step"]
            if "val/nll" in record:
                points.append((float(record["step"]), minutes, float(record["val/nll"])))
        name = path.parents[1].name
        if points and (name not in series or points[-1][0] > series[name][0][-1]):
            series[name] = tuple(map(list, zip(*points, strict=True)))  # pyright: ignore[reportArgumentType]
    return series


def training_section(histories: Sequence[Path]) -> Section:
    """Validation curves of every model."""
    series = training_curves(histories)
    section = Section("Training", "training")
    if not series:
        return section.text("No validation was recorded.")
    across = {"steps of training": 0}
    if any(minutes[-1] for _, minutes, _ in series.values()):  # histories of an old commit have no times
        across["minutes of training, as measured"] = 1
    panels = [
        Panel(said, "validation NLL (nats/token)", {name: (found[x], found[2]) for name, found in series.items()})
        for said, x in across.items()
    ]
    buffer = BytesIO()
    curves(panels).savefig(buffer, format="png", metadata={"Software": None})
    return section.picture(buffer.getvalue(), "Negative log-likelihood of held-out images while training.")


def shown(value: Any) -> str:
    """A number with four digits, a dash for none, anything else as it is."""
    if pd.isna(value):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(run_command(main))
