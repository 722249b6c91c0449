"""Measurements of the stages, read for tables and the report: unexpected files are refused, none is passed over."""

from collections.abc import Callable, Mapping
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
    sampling: dict[str, Any] | None = None  # older ones do not say these
    patchify: dict[str, Any] | None = None
    networks: dict[str, Any] | None = None
    step: int | None = None
    threshold: float | None = None
    resolution: int | None = None


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


class _OfState(_Fields):
    model: str | None = None  # digest of its weights; older ones do not say these
    step: int | None = None


class Likelihood(_OfState):
    """The output of evaluate_likelihood."""

    nll: Number
    mean_patch_length: Number | None


class StatedLikelihood(Likelihood):
    """The same with the conditions that a model's card shows."""

    images: int
    tokens: int
    precision: str


class _Protocol(_OfState):
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
