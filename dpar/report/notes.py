"""Notes below a table: the conditions of its numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

from dpar.experiment.cells import table_rows
from dpar.experiment.settings import Experiment
from dpar.report import paper, tables
from dpar.report.measured import Measurements
from dpar.report.significance import paired_lines


def notes(experiment: Experiment, name: str, measured: Measurements) -> list[str]:
    """A line for each thing that a reader of the table `name` has to know; nothing of what was not measured."""
    lines, metrics = [], measured.metrics
    if metrics and measured.floor:
        lines += _of_metrics(next(iter(metrics.values())), measured.floor, tables.repeated(experiment))
    if measured.probes:
        lines.append(_of_probes(next(iter(measured.probes.values()))["conditions"]))
    rows = table_rows(experiment, name)
    if any(row.sample.patchify != row.model.patchify or row.sample.gate for row in rows):
        lines.append(
            "P_avg of rows that change something in sampling alone is the length of an image over the mean patches "
            "of the drawn ones; of the others, the mean patch length of held-out images."
        )
    if paper.quoted(experiment, name):
        lines.append("Quoted rows are other people's methods as the paper prints them; nothing of them was run here.")
    if metrics:
        lines += paired_lines(experiment, name, metrics, measured.likelihoods, measured.metric)
    return lines


def _of_metrics(measured: Mapping[str, Any], floor: Mapping[str, Any], repeated: str) -> Sequence[str]:
    stated = measured["conditions"]
    lines = [
        f"{measured['metric']}: {stated['samples']} samples against {stated['reference_samples']} images of "
        f"`{stated['reference']}`, feature network `{str(stated['extractor_sha256'])[:12]}`.",
        f"Noise floor, {floor['conditions']['samples']} real images against as many others: "
        f"{tables.with_spread(floor['frechet_distance']['mean'], floor['frechet_distance']['sd'])}.",
        f"Values are mean ± standard deviation over {repeated}.",
        *(f"Warning: {text}" for text in dict.fromkeys([*measured["warnings"], *floor["warnings"]])),
    ]
    if not measured["comparable_to_published"]:
        lines.append(f"Not comparable to published numbers: {measured['comparable_reason']}")
    return lines


def _of_probes(stated: Mapping[str, Any]) -> str:
    return (
        f"Top-1, top-5: a linear classifier on states {stated['states']}; fitted on {stated['training_images']} "
        f"training images ({stated['training_views']}; penalty {stated['penalty']:g}), measured on "
        f"{stated['val_images']} held-out images. The paper does not say how its own was fitted."
    )
