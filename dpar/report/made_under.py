"""The settings that the numbers of a table were made under, compared with those of the experiment that shows them.

A measurement states how its samples were drawn, but not the training, the tokenizer or the data before. The record of a
job keeps the whole experiment that it ran in: of the training for the weights that were measured, of the measurement
for the rest. Without records the experiment of the last run into the results stands for both.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from dpar.errors import InputError
from dpar.experiment.cells import ModelCell, SampleCell, model_cells, table_rows
from dpar.experiment.loading import load_experiment
from dpar.experiment.settings import TRAINING_PACE, EntropyModel, Experiment, gate_folder
from dpar.report.measured import Measurements
from dpar.tracking.ledger import files_of
from dpar.tracking.makers import Makers
from dpar.tracking.places import CONFIG, spool_root
from dpar.weights import WEIGHTS

_UNREAD = {"classes", "credits", "allow_shared"}  # of images: no number depends on them
_PACE = TRAINING_PACE - {"steps", "epochs"}
_Differences = Iterator[tuple[str, Any, Any]]  # a setting, its value then and now


class _Measured(NamedTuple):
    """A file of measurements: its path in the results, its cell, and the digest of the weights that it states."""

    path: str
    cell: SampleCell
    weights: str | None


class _Made(NamedTuple):
    """The experiment in which a file was made, and the state that its weights were trained as, where that is known."""

    experiment: Experiment
    state: str | None = None


def expect_settings(results: Path, experiment: Experiment, name: str, measured: Measurements) -> None:
    """Makes sure that the measurements of the table `name` were made under the settings of the experiment.

    Raises:
        InputError: a setting that a number depends on was another one.
    """
    made, now = _Records(results), model_cells(experiment)
    for file in _files(experiment, name, measured):
        measuring = made.of_file(file.path)
        training = made.of_weights(file) or measuring
        differ = [
            *(_trained_otherwise(training, experiment, now[file.cell.model], file.cell) if training else ()),
            *(_measured_otherwise(measuring.experiment, experiment) if measuring else ()),
        ]
        for setting, was, asked in differ:
            raise InputError(
                f"{file.path} was made with {setting} {_said(was)}, this experiment has {_said(asked)}: `dpar run` "
                "makes again what depends on it, or put the setting back"
            )


def _files(experiment: Experiment, name: str, measured: Measurements) -> Iterator[_Measured]:
    for cell in (cell for row in table_rows(experiment, name) for cell in row.samples):
        for (slug, seed), found in measured.metrics.items():
            if slug == cell.slug:
                networks = (found["conditions"].get("drawn") or {}).get("networks") or {}
                yield _Measured(f"metrics/{slug}/seed{seed}.json", cell, networks.get("model"))
        state = cell.model, cell.milestone
        if (found := measured.likelihoods.get(state)) is not None:
            yield _Measured(f"likelihood/{'/'.join(state)}.json", cell, found.get("model"))
        if (found := measured.probes.get(state)) is not None:
            yield _Measured(f"linear_probe/{'/'.join(state)}.json", cell, found["conditions"].get("model"))


class _Records:
    """The experiments in which files of a results folder were made."""

    def __init__(self, results: Path):
        self.results, self._makers = results, Makers(results, keep=False)
        self._read = cache(self._load)

    def _load(self, path: Path) -> Experiment | None:
        with suppress(InputError):  # of a version whose settings are others; what it says cannot be compared
            return load_experiment(path) if path.is_file() else None
        return None

    def _made(self, folder: Path, state: str | None = None) -> _Made | None:
        experiment = self._read(folder / CONFIG)
        return experiment and _Made(experiment, state)

    def of_file(self, path: str) -> _Made | None:
        """The experiment of the job that made a file; that of the last run where no record tells."""
        record = self._makers.last(path)
        if record is not None and (found := self._made(spool_root(self.results) / record.spool)):
            return found
        return self._made(self.results)

    def of_weights(self, file: _Measured) -> _Made | None:
        """The same of the training of the weights that were measured, and the state that they were trained as."""
        place = f"models/{file.cell.model}/{file.cell.milestone}/{WEIGHTS}"
        if file.weights is None:
            return None
        record = self._makers.last(place, file.weights)
        if record is not None and record.sha256 == file.weights:
            return self._made(spool_root(self.results) / record.spool, file.cell.milestone)
        for manifest in self._makers.ledger.manifests:
            for path, sha256 in (found for artefact in manifest.outputs for found in files_of(artefact)):
                if sha256 == file.weights and path.startswith(f"models/{file.cell.model}/"):
                    return self._made(manifest.spool, Path(path).parent.name)
        return None


def _trained_otherwise(made: _Made, experiment: Experiment, now: ModelCell, cell: SampleCell) -> _Differences:
    """Differences in what decides the weights of a cell."""
    if (was := model_cells(made.experiment).get(cell.model)) is None:  # the name of a cell has its settings in it
        return
    is_last = cell.milestone == now.milestones[-1]
    state = made.state or (was.milestones[-1] if is_last else cell.milestone)
    if state != cell.milestone:
        yield f"training.{now.training.unit}s", state, cell.milestone
    sizes = was.transformer.sizes, now.transformer.sizes
    yield from _differences("model", *sizes)
    yield from _differences("model", *(_dumped(c.transformer, "attention", "variant", *sizes[0]) for c in (was, now)))
    yield from _differences("training", *(_dumped(c.training, *TRAINING_PACE) for c in (was, now)))
    yield from _differences("", {"seed": was.seed}, {"seed": now.seed})
    if now.transformer.is_dpar and was.transformer.is_dpar:
        yield from _differences("patchify", *(_dumped(c.patchify) for c in (was, now)))
    pair = made.experiment, experiment
    yield from _differences("images", *(_dumped(e.images, *_UNREAD) for e in pair))
    yield from _differences("tokenizer", *(_dumped(e.tokenizer, "training", "weights_sha256", "variant") for e in pair))
    yield from _differences("tokenizer.training", *(_dumped(e.tokenizer.training, "checkpoint_every") for e in pair))
    yield from _differences("codes", *(_dumped(e.codes, "format", "train_shards", "val_shards") for e in pair))
    if now.transformer.is_dpar and now.patchify.is_dynamic:
        yield from _of_network("entropy_model", *(e.entropy_model for e in pair))
    if cell.gate is not None:
        folder = gate_folder(cell.gate)
        yield from _of_network(folder, *(e.networks.get(folder) for e in pair))


def _of_network(name: str, was: EntropyModel | None, now: EntropyModel | None) -> _Differences:
    if was and now:
        yield from _differences(name, *(_dumped(n, "training", "model", "weights_sha256") for n in (was, now)))
        yield from _differences(f"{name}.model", was.model.sizes, now.model.sizes)
        yield from _differences(f"{name}.training", *(_dumped(n.training, *_PACE) for n in (was, now)))


def _measured_otherwise(was: Experiment, now: Experiment) -> _Differences:
    """Differences in how samples are measured."""
    unread = {"linear_probe"} | ({"classifier"} if now.evaluation.extractor != "classifier" else set())
    yield from _differences("evaluation", *(_dumped(e.evaluation, *unread) for e in (was, now)))


def _dumped(settings: Any, *without: str) -> dict[str, Any]:
    return {} if settings is None else settings.model_dump(mode="json", exclude=set(without))


def _differences(group: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> _Differences:
    for name in {**was, **now}:
        if was.get(name) != now.get(name):
            yield f"{group}.{name}".lstrip("."), was.get(name), now.get(name)


def _said(value: Any) -> str:
    return "not set" if value is None else f"{value!s:.60}"
