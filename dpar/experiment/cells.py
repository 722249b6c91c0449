"""Which models a run trains and which samples it draws: every cell of every table, each once."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from dpar import files
from dpar.errors import InputError, did_you_mean
from dpar.experiment.loading import refusals
from dpar.experiment.settings import Experiment, Patchify, Sampling, Settings, Table, Training, Transformer, gate_folder

# How a setting that departs from the experiment's own is written in the name of a cell.
SHORT = {"threshold": "eth", "p_avg": "pavg", "max_length": "pmax", "row_boundary": "rows", "cfg_scale": "cfg"}

# Numbers of the paper that rows can show next to ours, as `paper.NAME`.
PAPER_METRICS = ("fid", "inception_score", "precision", "recall", "steps", "top1", "top5")

S = TypeVar("S", bound=Settings)
_OF_ROWS: dict[str, type[Settings]] = {model.__name__: model for model in (Transformer, Patchify, Sampling)}
# Settings that a row can replace, by the group that they are written in.
ROW_KEYS = {
    "transformer": Transformer.model_fields,
    "patchify": Patchify.model_fields,
    "sampling": Sampling.model_fields,
    "inference": {**Patchify.model_fields, "gate": None},
}


@dataclass(frozen=True)
class ModelCell:
    """One training: its name in paths and everything that decides its weights."""

    slug: str
    transformer: Transformer
    patchify: Patchify
    training: Training
    seed: int

    @property
    def milestones(self) -> tuple[str, ...]:
        """Names of the states that can be kept, in order, such as `epoch50`; the last is the end of the training."""
        return tuple(f"{self.training.unit}{n}" for n in (*self.training.milestones, self.training.length))


@dataclass(frozen=True)
class SampleCell:
    """One set of samples: a state of a model and how images are drawn from it."""

    slug: str
    model: str
    milestone: str
    sampling: Sampling
    patchify: Patchify
    gate: str | None = None  # which of the experiment's gates places the boundaries, not its entropy model


@dataclass(frozen=True)
class Row:
    """One row of a table: varied settings, the paper's numbers, and the cells that fill it.

    Attributes:
        values: the row as the experiment writes it.
        paper: the paper's numbers.
        models: the trainings, one per training seed.
        samples: the sets of samples drawn from each of them.
    """

    values: dict[str, Any]
    paper: dict[str, float]
    models: tuple[ModelCell, ...]
    samples: tuple[SampleCell, ...]

    @property
    def model(self) -> ModelCell:
        """The first training, from which the others differ by their seed alone."""
        return self.models[0]

    @property
    def sample(self) -> SampleCell:
        """The samples drawn from the first training."""
        return self.samples[0]


def table_rows(experiment: Experiment, name: str) -> list[Row]:
    """The rows of the table `name`, each base row times every combination of varied values.

    Raises:
        InputError: a row names an unknown model, milestone or setting.
    """
    table = experiment.tables[name]
    return [resolved_row(experiment, f"tables.{name}", values) for values in _expanded(table)]


def figure_rows(experiment: Experiment, name: str) -> list[Row]:
    """The cells that the figure `name` shows.

    Raises:
        InputError: a row names an unknown model, milestone or setting.
    """
    return [resolved_row(experiment, f"figures.{name}", values) for values in experiment.figures[name].rows]


def written_rows(experiment: Experiment) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row of every table and figure as it is written, with where that is, such as `tables.comparison`.

    Those on request come last, so that what a run chooses of all cells is among those that it makes anyway.
    """
    for name in experiment.shown_tables:
        yield from ((f"tables.{name}", values) for values in _expanded(experiment.tables[name]))
    for name, figure in experiment.figures.items():
        yield from ((f"figures.{name}", values) for values in figure.rows)
    for name in experiment.requested_tables:
        yield from ((f"tables.{name}", values) for values in _expanded(experiment.tables[name]))


def model_cells(experiment: Experiment) -> dict[str, ModelCell]:
    """Every training that the experiment's models and tables name, by slug; equal cells are one."""
    cells = {cell.slug: cell for name in experiment.models for cell in _model_cells(experiment, name, {}, {})[:1]}
    for row in _all_rows(experiment):
        for cell in row.models:
            _share(cells, cell)
    return cells


def described_models(experiment: Experiment) -> set[str]:
    """Slugs of the trainings of the models as the experiment describes them, for every seed."""
    return {cell.slug for name in experiment.models for cell in _model_cells(experiment, name, {}, {})}


def sample_cells(experiment: Experiment) -> dict[str, SampleCell]:
    """Every set of samples that the experiment's tables name, by slug; equal cells are one.

    Raises:
        InputError: a row of a table cannot be filled, or a gate is in no row.
    """
    cells: dict[str, SampleCell] = {}
    for row in _all_rows(experiment):
        for cell in row.samples:
            _share(cells, cell)
    unused = experiment.gates.keys() - {cell.gate for cell in cells.values()}
    if unused:
        name = min(unused)
        raise InputError(f"gates.{name}: no row of a table samples through it; give one `inference.gate: {name}`")
    return cells


def gated_cells(experiment: Experiment) -> list[SampleCell]:
    """One set of samples through a gate for each state of a model and each patch rule under which gates are used."""
    cells = (cell for cell in sample_cells(experiment).values() if cell.gate is not None)
    return list({(cell.model, cell.milestone, cell.patchify.model_dump_json()): cell for cell in cells}.values())


def analysed_cells(experiment: Experiment) -> list[SampleCell]:
    """Samples of the first fully trained DPAR with its training's dynamic patches, and of a LlamaGen as wide, if any.

    Empty without such a DPAR.
    """
    models = model_cells(experiment)
    own = [
        cell
        for cell in sample_cells(experiment).values()
        if cell.gate is None
        and (cell.milestone, cell.patchify) == (models[cell.model].milestones[-1], models[cell.model].patchify)
    ]
    for cell in own:
        transformer = models[cell.model].transformer
        if transformer.is_dpar and cell.patchify.is_dynamic:
            others = [other for other in own if not models[other.model].transformer.is_dpar]
            wide = transformer.sizes["width"]
            return [cell, *(other for other in others if models[other.model].transformer.sizes["width"] == wide)][:2]
    return []


def shard_of(num_images: int, batch_size: int, shard: int, shards: int) -> range:
    """The images of one shard of a set of samples: whole batches, as long as each gets one."""
    unit = batch_size if num_images > (shards - 1) * batch_size else 1
    units = -(-num_images // unit)
    first, last = (min(n * units // shards * unit, num_images) for n in (shard, shard + 1))
    return range(first, last)


def p_avg_targets(experiment: Experiment) -> list[float]:
    """The mean patch lengths to which some cell wants a threshold calibrated, rising."""
    patchify = [c.patchify for c in model_cells(experiment).values()]
    patchify += [c.patchify for c in sample_cells(experiment).values()]
    return sorted({p.p_avg for p in patchify if p.is_dynamic and p.p_avg is not None})


def merged_thresholds(paths: Iterable[Path]) -> dict[str, Any]:
    """The results of calibrate_threshold in `paths`, one file per target, as one mapping.

    Raises:
        InputError: a file is missing, or holds no thresholds.
    """
    found: dict[str, dict[str, float]] = {}
    for path in paths:
        with files.fields_of(path):
            for target, entry in files.read_json(path)["p_avg"].items():
                found[target] = {name: float(entry[name]) for name in ("threshold", "achieved")}
    return {"p_avg": found}


def sample_cell(experiment: Experiment, name: str) -> SampleCell:
    """The set of samples of that name.

    Raises:
        InputError: the experiment has none.
    """
    cells = sample_cells(experiment)
    if name not in cells:
        raise InputError(f"--cell {name}: there is no such set of samples; there are {', '.join(cells) or 'none'}")
    return cells[name]


def threshold_of(patchify: Patchify, thresholds: Mapping[str, Any]) -> float | None:
    """E_Th of `patchify` in nats, from the results of calibrate_threshold; None for static patches.

    Raises:
        InputError: no threshold was calibrated to this mean patch length.
    """
    if not patchify.is_dynamic:
        return None
    if patchify.threshold is not None:
        return patchify.threshold
    try:
        return float(thresholds["p_avg"][str(patchify.p_avg)]["threshold"])
    except KeyError:
        known = ", ".join(thresholds.get("p_avg", {})) or "none"
        raise InputError(
            f"no threshold is calibrated to a mean patch length of {patchify.p_avg} (calibrated: {known}); "
            "run calibrate_threshold again"
        ) from None


def _expanded(table: Table) -> Iterator[dict[str, Any]]:
    for row in table.rows:
        for combination in product(*table.vary.values()):
            yield {**table.base, **row, **dict(zip(table.vary, combination, strict=True))}


def _all_rows(experiment: Experiment) -> Iterator[Row]:
    for where, values in written_rows(experiment):
        yield resolved_row(experiment, where, values)


def resolved_row(experiment: Experiment, where: str, values: dict[str, Any]) -> Row:
    """The row that is written at `where`, with its cells.

    Raises:
        InputError: it names an unknown model, milestone or setting.
    """
    groups: dict[str, dict[str, Any]] = {name: {} for name in (*ROW_KEYS, "paper")}
    plain: dict[str, Any] = {}
    for key, value in values.items():
        group, dot, field = key.partition(".")
        if dot and group in groups:
            groups[group][field] = value
        elif key in ("model", "milestone"):
            plain[key] = value
        else:
            near = did_you_mean(
                key, ["model", "milestone", *(f"{name}.{k}" for name, keys in ROW_KEYS.items() for k in keys)]
            )
            raise InputError(
                f"{where}: unknown key {key!r}{near}; a row has model, milestone and {', '.join(groups)}.*"
            )
    name = plain.get("model")
    if name not in experiment.models:
        near = did_you_mean(str(name), experiment.models)
        raise InputError(f"{where}: there is no model {name!r}{near}; models are {', '.join(experiment.models)}")
    try:
        models = _model_cells(experiment, name, groups["transformer"], groups["patchify"])
        samples = tuple(
            _sample_cell(experiment, model, plain.get("milestone"), groups["sampling"], groups["inference"])
            for model in models
        )
    except (ValidationError, InputError) as error:
        refused = isinstance(error, ValidationError)
        reason = "; ".join(refusals(error, _OF_ROWS.get(error.title))) if refused else error
        raise InputError(f"{where}: row {values}: {reason}") from None
    for key, value in groups["paper"].items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if key not in PAPER_METRICS or not number:
            raise InputError(
                f"{where}: paper.{key} is {value!r}; expected a number under paper.{', paper.'.join(PAPER_METRICS)}"
            )
    of_patches = groups["patchify"] or groups["inference"] or {"position", "query_pooling"} & {*groups["transformer"]}
    if not models[0].transformer.is_dpar and of_patches:
        raise InputError(
            f"{where}: row {values}: {name} has no patches, so patchify.*, inference.*, transformer.position and "
            "transformer.query_pooling say nothing of it"
        )
    shown = {key: value for key, value in values.items() if not key.startswith("paper.")}
    return Row(shown, groups["paper"], models, samples)


def _model_cells(
    experiment: Experiment, name: str, transformer: Mapping[str, Any], patchify: Mapping[str, Any]
) -> tuple[ModelCell, ...]:
    """One training for each of the experiment's training seeds."""
    base = experiment.models[name]
    # a size that equals the variant's own is no departure: the default cell of a table is the model itself
    transformer = {
        key: value for key, value in transformer.items() if {**base.model_dump(), **base.sizes}.get(key) != value
    }
    changed = _replaced(base, transformer)
    rule = _replaced_patchify(experiment.patchify, patchify)
    parts = [name, *_departures(base, changed), *_departures(experiment.patchify, rule)]
    return tuple(
        ModelCell(
            "_".join([*parts, *([f"seed{seed}"] * (seed != experiment.seed))]), changed, rule, experiment.training, seed
        )
        for seed in experiment.training_seeds or (experiment.seed,)
    )


def _sample_cell(
    experiment: Experiment,
    model: ModelCell,
    milestone: int | None,
    sampling: Mapping[str, Any],
    inference: Mapping[str, Any],
) -> SampleCell:
    state = model.milestones[-1] if milestone is None else f"{model.training.unit}{milestone}"
    if state not in model.milestones:
        raise InputError(f"milestone {milestone} is not kept; training keeps {', '.join(model.milestones)}")
    drawn = _replaced(experiment.sampling, sampling)
    rule = _replaced_patchify(model.patchify, {key: value for key, value in inference.items() if key != "gate"})
    parts = [] if state == model.milestones[-1] else [state]
    parts += _departures(experiment.sampling, drawn) + _departures(model.patchify, rule)
    gate = inference.get("gate")
    if experiment.network(gate_folder(gate)) is not experiment.entropy_model:
        if not rule.is_dynamic:
            raise InputError(f"static patches ask no entropies: inference.gate {gate!r} says nothing of them")
        parts.append(f"gate{_plain(gate)}")
    return SampleCell("-".join([model.slug, *parts]), model.slug, state, drawn, rule, gate)


def _replaced(settings: S, values: Mapping[str, Any]) -> S:
    return type(settings).model_validate({**settings.model_dump(), **values})


def _replaced_patchify(patchify: Patchify, values: Mapping[str, Any]) -> Patchify:
    """`patchify` with `values`; a threshold given in one form takes the place of the other form."""
    base = patchify.model_dump()
    if "threshold" in values:
        base["p_avg"] = None
    if "p_avg" in values:
        base["threshold"] = None
    return Patchify.model_validate({**base, **values})


def _departures(base: Settings, changed: Settings) -> list[str]:
    values = ((key, getattr(base, key), getattr(changed, key)) for key in type(base).model_fields)
    return [
        f"{SHORT.get(key, key.replace('_', ''))}{_plain(value)}"
        for key, before, value in values
        if value != before and not (value is None and key in ("threshold", "p_avg"))
    ]


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int | float):
        return repr(value).removesuffix(".0")
    return "+".join(map(_plain, value)) if isinstance(value, list | tuple) else str(value).lower()


C = TypeVar("C", ModelCell, SampleCell)


def _share(cells: dict[str, C], cell: C) -> None:
    if cells.setdefault(cell.slug, cell) != cell:
        raise InputError(f"two different cells would share the name {cell.slug!r}; rename one of the models")
