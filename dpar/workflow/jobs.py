"""The names of the graph's jobs by what they make: a stage says with them whose files it wants to read."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from dpar.experiment.cells import model_cells, p_avg_targets
from dpar.experiment.settings import FIGURES, Experiment, gate_folder
from dpar.tracking import made_by
from dpar.tracking.makers import Wanted, recorded_json
from dpar.weights import model_files

TOKENIZER = ("train_tokenizer", "import_tokenizer")
REFERENCE = "extract_features[features/reference]"


def index(split: str, *paths: Path) -> list[Wanted]:
    """Indices of the images of a split."""
    return made_by(f"index_images[{split}]", *paths)


def class_names(path: Path | None) -> list[Wanted]:
    """The index of the training images, if it is there still: all that is read of it are the names of the classes."""
    return index("train", path) if path is not None and path.exists() else []


def tokenizer(folder: Path) -> list[Wanted]:
    """The tokenizer."""
    return made_by(TOKENIZER, *model_files(folder))


def network(name: str, folder: Path) -> list[Wanted]:
    """The entropy model, or a gate as `gates/NAME`."""
    rules = ("train_entropy_model", "import_entropy_model")
    jobs = rules if name == gate_folder(None) else tuple(f"{rule}[{name}]" for rule in rules)
    return made_by(jobs, *model_files(folder))


def extractor(path: Path) -> list[Wanted]:
    """The classifier in a folder, or a file that is nobody's."""
    return made_by("train_classifier", *model_files(path)) if path.is_dir() else [Wanted(path)]


def codes(store: str, split: str, path: Path) -> list[Wanted]:
    """The manifest of a split: of `codes`, or of `scored` ones."""
    return made_by(f"index_codes[{store}-{split}]", path)


def shards(store: str, split: str, paths: Iterable[Path]) -> list[Wanted]:
    """Shards of a split."""
    rule = {"codes": "encode_images", "scored": "score_entropies"}.get(store)
    return [wanted for p in paths for wanted in (made_by(f"{rule}[{split}-{p.stem}]", p) if rule else [Wanted(p)])]


def codes_of_model(experiment: Experiment, model: str, split: str, path: Path) -> list[Wanted]:
    """The manifest that a model learns from, or is measured on: scored codes where entropies place its patches."""
    cell = model_cells(experiment).get(model)
    scored = cell is not None and cell.transformer.is_dpar and cell.patchify.is_dynamic
    return codes("scored" if scored else "codes", split, path)


def thresholds(experiment: Experiment, paths: Iterable[Path], *targets: float) -> list[Wanted]:
    """Thresholds calibrated for `targets`; by default for all of the experiment's mean patch lengths."""
    wanted = targets or p_avg_targets(experiment)
    return made_by(tuple(f"calibrate_threshold[{target}]" for target in wanted), *paths)


def gate_thresholds(gate: str, path: Path) -> list[Wanted]:
    """The threshold calibrated for a gate."""
    return made_by(f"calibrate_gate[{gate}]", path)


def model(state: str, folder: Path) -> list[Wanted]:
    """A model's state, MODEL/MILESTONE."""
    return made_by(f"train_model[{state}]", *model_files(folder))


def named_model(folder: Path) -> list[Wanted]:
    """The files of a model, outside any job: of the state that its folder is called after, in a results folder."""
    place = folder.absolute()
    if place.parents[1].name == "models" and (place.parents[2] / "experiment.json").is_file():
        return model(f"{place.parent.name}/{place.name}", folder)
    return [Wanted(path) for path in model_files(folder)]


def measured_state(experiment: Path, output: Path, folder: Path) -> str:
    """MODEL/MILESTONE of the model in `folder`; as the name of `output` says it, where that lies in the results."""
    if output.absolute().is_relative_to(experiment.absolute().parent):
        return f"{output.parent.name}/{output.stem}"
    return f"{folder.parent.name}/{folder.name}"


def samples(paths: Iterable[Path]) -> list[Wanted]:
    """Shards of sets of samples, or their images, each of the cell, seed and number in its path."""
    found = ((p, p.parent.parent.name, p.parent.name, p.stem) for p in map(Path.absolute, paths))
    return [
        wanted
        for path, cell, seed, shard in found
        for wanted in made_by(f"sample_images[{cell}/{seed}/{int(shard) if shard.isdecimal() else shard}]", path)
    ]


def by_state(rule: str, paths: Iterable[Path]) -> list[Wanted]:
    """A rule's output per milestone of each model: RULE/MODEL/MILESTONE.json."""
    return [wanted for p in paths for wanted in made_by(f"{rule}[{p.parent.name}/{p.stem}]", p)]


def by_stem(rule: str, paths: Iterable[Path]) -> list[Wanted]:
    """A rule's output per table, named by it."""
    return [wanted for p in paths for wanted in made_by(f"{rule}[{p.stem}]", p)]


def patch_counts(paths: Iterable[Path]) -> list[Wanted]:
    """The patches that were counted."""
    return made_by("count_patches", *paths)


def recorded(wanted: Callable[[Iterable[Path]], list[Wanted]]) -> Callable[[Path], dict[str, Any]]:
    """The reader, outside any job, of JSON that one of those jobs has made."""
    return lambda path: recorded_json(*wanted([path]))


def noise_floor(paths: Iterable[Path]) -> list[Wanted]:
    """The metrics of real images."""
    return made_by("measure_noise_floor", *paths)


def table(name: str, path: Path, noise_floor: Path) -> list[Wanted]:
    """The table of this name, and the noise floor that it is shown with."""
    return made_by(f"make_table[{name}]", path) + made_by("measure_noise_floor", noise_floor)


def tables(paths: Iterable[Path], noise_floor: Path) -> list[Wanted]:
    """Tables, tables/TABLE.csv, and the noise floor that they are shown with."""
    return by_stem("make_table", paths) + made_by("measure_noise_floor", noise_floor)


def metrics(paths: Iterable[Path]) -> list[Wanted]:
    """Measurements of sets of samples, metrics/CELL/seedN.json."""
    return [wanted for p in paths for wanted in made_by(f"compute_metrics[{p.parent.name},{p.stem}]", p)]


def histories(paths: Iterable[Path]) -> list[Wanted]:
    """Curves of trainings, models/MODEL/MILESTONE/history.jsonl."""
    return [wanted for p in paths for wanted in made_by(f"train_model[{p.parents[1].name}/{p.parent.name}]", p)]


def figures(paths: Iterable[Path]) -> list[Wanted]:
    """The report's figures: each has a job of its own."""
    own = {"completions": "complete_images", "entropy_maps": "plot_entropy_maps", "compute": "plot_compute"}
    assert own.keys() < {*FIGURES}, "every figure of the report has its job here"
    return [wanted for p in paths for wanted in made_by(own.get(p.stem, f"plot_samples[{p.stem}]"), p)]
