"""Measurements of the stages, read for tables and the report: unexpected files are refused, none is passed over."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from dpar.errors import InputError
from dpar.files import fields_of, read_json

Number = Annotated[float, Field(allow_inf_nan=False)]


class _Fields(BaseModel):
    """Fields that are read of a file; there may be more."""

    model_config = ConfigDict(strict=True)


class _Values(_Fields):
    frechet_distance: Number
    inception_score: Number | None
    precision: Number | None
    recall: Number | None
    class_agreement: Number | None
    steps: Number | None = None  # older ones do not say


class _Drawn(_Fields):
    cell: str
    seed: int


class _Conditions(_Fields):
    samples: int
    reference_samples: int
    reference: str
    extractor_sha256: str
    drawn: _Drawn | None = None


class Metrics(_Fields):
    """The output of compute_metrics."""

    metric: str
    values: _Values
    conditions: _Conditions
    warnings: list[str]
    comparable_to_published: bool
    comparable_reason: str


class Likelihood(_Fields):
    """The output of evaluate_likelihood."""

    nll: Number
    mean_patch_length: Number | None


class StatedLikelihood(Likelihood):
    """The same with the conditions that a model's card shows."""

    images: int
    tokens: int
    precision: str


class _Protocol(_Fields):
    states: str
    training_images: int
    training_views: str
    val_images: int
    penalty: Number


class Probe(_Fields):
    """The output of linear_probe."""

    top1: Number
    top5: Number | None = None  # none of few classes
    conditions: _Protocol


class _Spread(_Fields):
    mean: Number
    sd: Number


class _Halves(_Fields):
    samples: int


class Floor(_Fields):
    """The output of measure_noise_floor."""

    metric: str
    frechet_distance: _Spread
    conditions: _Halves
    warnings: list[str]


class _Counted(_Fields):
    parameters: int
    training_gmacs: Number


class Counts(_Fields):
    """The output of count_patches, as tables show it."""

    cells: dict[str, _Counted]


class _Patched(_Fields):
    steps: Number


class Steps(_Fields):
    """The same, as plans read it."""

    cells: dict[str, _Patched]


class _Agreement(_Fields):
    share: Number
    chance: Number
    precision: Number | None
    recall: Number | None


class _Placing(_Fields):
    model: str
    milestone: str
    gate: str | None
    kind: str
    parameters: int
    gate_gmacs: Number
    sampling_gmacs: Number
    threshold: Number | None
    mean_patch_length: Number
    steps: Number
    correlation: Number | None
    agreement: _Agreement
    nll: Number


class Comparison(_Fields):
    """The output of compare_gates."""

    images: int
    rows: list[_Placing]


@dataclass(frozen=True)
class Measurements:
    """The measurements of a table's cells, as far as they are there.

    Attributes:
        metrics: (sample cell, seed) -> what compute_metrics wrote.
        likelihoods: (model cell, milestone) -> what evaluate_likelihood wrote.
        thresholds: what calibrate_threshold wrote.
        costs: model cell -> its entry of what count_patches wrote.
        floor: what measure_noise_floor wrote.
        probes: (model cell, milestone) -> what linear_probe wrote.
    """

    metrics: Mapping[tuple[str, int], Mapping[str, Any]]
    likelihoods: Mapping[tuple[str, str], Mapping[str, Any]]
    thresholds: Mapping[str, Any]
    costs: Mapping[str, Mapping[str, Any]]
    floor: Mapping[str, Any] | None = None
    probes: Mapping[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        """Name of the Frechet distance, which depends on the feature network."""
        return next((measured["metric"] for measured in self.metrics.values()), "Frechet distance")


def read_measured(path: Path, kind: type[BaseModel], read: Callable[..., Any] = read_json) -> dict[str, Any]:
    """The JSON object in `path`, with all that is read of what a stage measured.

    Args:
        kind: what it must be, such as `Metrics`.
        read: the JSON of a path.

    Raises:
        InputError: it is something else.
    """
    found = read(path)
    with fields_of(path):
        kind.model_validate(found)
    return found


def read_metrics(path: Path, read: Callable[..., Any] = read_json) -> dict[str, Any]:
    """The output of compute_metrics in `path`, `metrics/CELL/seedN.json`, for the samples that its name gives.

    Raises:
        InputError: it is something else, or of other samples.
    """
    found = read_measured(path, Metrics, read)
    drawn = found["conditions"].get("drawn")
    if drawn and (drawn["cell"], f"seed{drawn['seed']}") != (path.parent.name, path.stem):
        raise InputError(
            f"{path} holds the metrics of the samples {drawn['cell']}/seed{drawn['seed']}: put it back where it was, "
            "or delete it and run compute_metrics again"
        )
    return found


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


SHARED = (
    "reference", "reference_source", "reference_digest", "reference_samples", "reference_statistics", "extractor",
    "extractor_sha256", "resolution", "crop", "profile", "resize", "dims", "k", "kernel", "dtype",
)  # fmt: skip
"""Conditions of compute_metrics that all numbers of a table share; `splits` and batches of sampling may differ."""
PROBES_SHARED = (
    "training_images", "training_views", "val_images", "states", "penalty", "iterations",
)  # fmt: skip
"""The same of linear_probe."""


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
