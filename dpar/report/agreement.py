"""Agreement of measurements with the cells that a table shows and with one another: what does not fit is refused."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dpar.errors import InputError
from dpar.experiment.cells import Row, SampleCell, table_rows, threshold_of
from dpar.experiment.settings import Experiment, Settings
from dpar.report.measured import Measurements

SHARED = (
    "reference", "reference_source", "reference_digest", "reference_samples", "reference_statistics", "extractor",
    "extractor_sha256", "resolution", "crop", "profile", "resize", "dims", "k", "kernel", "dtype",
)  # fmt: skip
"""Conditions of compute_metrics that all numbers of a table share; `splits` and batches of sampling may differ."""
FLOOR_SHARED = tuple(name for name in SHARED if name not in ("reference_samples", "reference_statistics", "kernel"))
"""Conditions of the noise floor, the distance of two halves of the reference, that are those of the metrics too."""
PROBES_SHARED = (
    "training_images", "training_views", "val_images", "states", "penalty", "iterations",
)  # fmt: skip
"""The same of linear_probe."""
UNDRAWN = ("num_images", "seeds", "batch_size", "shards", "compile")
"""Settings of sampling that decide no image but for rounding, or that `expect_samples` and `read_metrics` look at."""


def expect_agreement(experiment: Experiment, name: str, measured: Measurements) -> None:
    """Makes sure that the measurements of the table `name` are of what its rows say, and belong together.

    Raises:
        InputError: one is of other settings, of another state of a model, or under other conditions than the others.
    """
    rows = table_rows(experiment, name)
    cells = {cell.slug: (row, cell) for row in rows for cell in row.samples}
    named = {f"metrics/{cell}/seed{seed}.json": (cell, found) for (cell, seed), found in measured.metrics.items()}
    for file, (slug, found) in named.items():
        if slug in cells:
            row, cell = cells[slug]
            expect_samples(file, found, cell.sampling.num_images)
            expect_drawn_as(file, found, row, cell, experiment, measured.thresholds)
    for row, cell in cells.values():
        expect_one_state(row, cell, measured)
    metrics = {file: found for file, (_, found) in named.items()}
    expect_shared(metrics, SHARED)
    if measured.floor:
        expect_shared(metrics | {"metrics/noise_floor.json": measured.floor}, FLOOR_SHARED)
    probes = {f"linear_probe/{'/'.join(state)}.json": found for state, found in measured.probes.items()}
    expect_shared(probes, PROBES_SHARED)


def expect_drawn_as(
    file: str,
    found: Mapping[str, Any],
    row: Row,
    cell: SampleCell,
    experiment: Experiment,
    thresholds: Mapping[str, Any],
) -> None:
    """Makes sure that the samples were drawn with the settings of their cell, as far as the metrics state them.

    Args:
        file: of the metrics, for messages.
        found: what it holds.
        thresholds: what calibrate_threshold wrote.

    Raises:
        InputError: a setting was another one.
    """
    drawn = found["conditions"].get("drawn") or {}
    is_dpar = row.model.transformer.is_dpar
    differ = list(_differences("sampling", drawn.get("sampling"), cell.sampling))
    if is_dpar:
        differ += _differences("patchify", drawn.get("patchify"), cell.patchify)
    if "patchify" in drawn and (drawn["patchify"] is not None) != is_dpar:
        patched = {True: "with patches", False: "without patches"}
        differ.append(("transformer.architecture", patched[not is_dpar], patched[is_dpar]))
    group = "evaluation" if experiment.evaluation.resolution else "images"
    side, wanted = drawn.get("resolution"), getattr(experiment, group).resolution
    if side is not None and side != wanted:
        differ.append((f"{group}.resolution", side, wanted))
    used = drawn.get("threshold")
    if not differ and used is not None and is_dpar and cell.patchify.is_dynamic and not cell.gate:
        now = threshold_of(cell.patchify, thresholds)
        if now is not None and not math.isnan(now) and not math.isclose(used, now, rel_tol=1e-6):  # rounded to float32
            differ.append(("the threshold (nats)", used, now))
    for setting, was, asked in differ:
        raise InputError(
            f"{file} measures samples drawn with {setting} {was}, its row asks for {asked}: `dpar run` draws and "
            "measures them again, or put the setting back"
        )


def _differences(group: str, stated: Mapping[str, Any] | None, wanted: Settings) -> Iterator[tuple[str, Any, Any]]:
    """Settings of a group that a file states otherwise: their name, what it states, what is wanted.

    One that the file does not state is taken for the default if it is never written then, else for one that is younger
    than the file.
    """
    if stated is None:
        return
    asked = wanted.model_dump(mode="json")
    for name, described in type(wanted).model_fields.items():
        default = described.get_default(call_default_factory=True)
        default = list(default) if isinstance(default, tuple) else default
        unwritten = default if described.exclude_if is not None else asked.get(name)
        was, now = stated.get(name, unwritten), asked.get(name, default)
        if name in {**stated, **asked} and name not in UNDRAWN and was != now:
            yield f"{group}.{name}", was, now


def expect_one_state(row: Row, cell: SampleCell, measured: Measurements) -> None:
    """Makes sure that all measurements of a state are of the same weights, after the steps that its name says.

    Raises:
        InputError: two are of different weights, or one is of another step.
    """
    path, found = f"{cell.model}/{cell.milestone}", list(stated_of(cell, measured))
    if row.model.training.unit == "step":
        wanted = int(cell.milestone.removeprefix("step"))
        for file, _, _, step in found:
            if step is not None and step != wanted:
                raise InputError(
                    f"{file} measures the model after training step {step}, its row asks for {path}: `dpar run` "
                    "trains and measures that, or put `training.steps` and `training.milestones` back"
                )
    for what in ("model", "step"):
        known = [(one, value) for one in found if (value := getattr(one, what)) is not None]
        for one, value in known[1:]:
            first, expected = known[0]
            if value != expected:
                rules = " ".join(dict.fromkeys((first.rule, one.rule)))
                raise InputError(
                    f"{one.file} and {first.file} measure different states of {path}: {what} {value!s:.12} and "
                    f"{expected!s:.12}; `dpar run -- --forcerun {rules}` makes both again"
                )


class Stated(NamedTuple):
    """The digest of the weights and the training step that a file states, and the rule that draws or measures it."""

    file: str
    rule: str
    model: str | None
    step: int | None


def stated_of(cell: SampleCell, measured: Measurements) -> Iterator[Stated]:
    """Statements of each measurement of the samples of a cell, and of the state that they are drawn from."""
    state, path = (cell.model, cell.milestone), f"{cell.model}/{cell.milestone}.json"
    if (said := measured.likelihoods.get(state)) is not None:
        yield Stated(f"likelihood/{path}", "evaluate_likelihood", said.get("model"), said.get("step"))
    if (probe := measured.probes.get(state)) is not None:
        said = probe.get("conditions", {})
        yield Stated(f"linear_probe/{path}", "linear_probe", said.get("model"), said.get("step"))
    for (slug, seed), found in measured.metrics.items():
        if slug == cell.slug:
            drawn = found["conditions"].get("drawn") or {}
            model = (drawn.get("networks") or {}).get("model")
            yield Stated(f"metrics/{slug}/seed{seed}.json", "sample_images", model, drawn.get("step"))


def expect_patches(likelihood: Mapping[str, Any], state: str, *, is_dpar: bool) -> None:
    """Makes sure that a likelihood was measured with patches if that is how its model reads images.

    Raises:
        InputError: it was not, or with patches of a model that has none.
    """
    if (likelihood["mean_patch_length"] is not None) != is_dpar:
        found, expected = ("no patches", "a DPAR") if is_dpar else ("patches", "a LlamaGen, which has none")
        raise InputError(
            f"the likelihood of {state} was measured with {found}, but that is {expected}: two files were exchanged; "
            f"delete likelihood/{state}.json and run evaluate_likelihood again"
        )


def expect_shared(measured: Mapping[str, Mapping[str, Any]], fields: Sequence[str]) -> None:
    """Makes sure that measurements stand under the same conditions, as far as they state them.

    Args:
        measured: the file of each, for messages -> what it holds.
        fields: of `conditions`.

    Raises:
        InputError: two files differ.
    """
    stated = {file: {"metric": found.get("metric"), **found.get("conditions", {})} for file, found in measured.items()}
    for name in ("metric", *fields):
        known = [(file, value) for file, values in stated.items() if (value := values.get(name)) is not None]
        for file, value in known[1:]:
            if value != known[0][1]:
                raise InputError(
                    f"{file} and {known[0][0]} do not belong into one table: their `{name}` differs "
                    f"({value!r:.80} and {known[0][1]!r:.80}); measure both again under the same settings"
                )


def expect_samples(file: str, found: Mapping[str, Any], wanted: int) -> None:
    """Makes sure that so many samples were measured as the experiment asks for.

    Raises:
        InputError: it was another number.
    """
    if (samples := found["conditions"]["samples"]) != wanted:
        raise InputError(
            f"{file} measures {samples} samples, `sampling.num_images` of its cell is {wanted}: draw and measure them "
            "again, or put the setting back"
        )
