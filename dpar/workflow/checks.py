"""Checks before the first job for what would stop a run or make its numbers worthless.

From the experiment alone, and from cheap looks: at files' existence and sizes, the counts in the metadata of Parquet
files and in the index of an earlier run. What costs more is said by the job that comes upon it.
"""

import json
import re
import zipfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path

from dpar.data.arrays import read_header
from dpar.data.generated import CLASSES
from dpar.errors import InputError
from dpar.experiment.cells import Row, model_cells, resolved_row, sample_cells, shard_of, written_rows
from dpar.experiment.composing import Places
from dpar.experiment.settings import LEAST_CRITIC_SIDE, Experiment, Patchify
from dpar.files import matching, sha256_file
from dpar.paper import IMAGENET_IMAGES, NUM_CLASSES
from dpar.workflow.image_checks import Looks
from dpar.workflow.problems import Problem
from dpar.workflow.recipes import RECIPES
from dpar.workflow.user_paths import SPLITS, UserPath, found_instead, from_jobs, other_kind, user_paths

LONGEST_CELL = 200  # bytes of a cell's name, which the names of logs contain together with a seed and a shard
LEAST_CLASSIFIED = 8  # pixels, the side of the smallest images that the classifier takes
DIMENSIONS = {"inception": 2048}  # of the features


@dataclass(frozen=True)
class Findings:
    """All problems at once, what could not be looked at yet, and the images of each class by split, where known."""

    problems: list[Problem]
    unknown: list[str]
    counts: dict[str, list[int] | None] = field(default_factory=dict)


def refuse(
    experiment: Experiment, *, to_make: Collection[str], places: Places | None = None, here: bool = True
) -> list[str]:
    """The paths that could not be checked yet; all else is in order.

    Args:
        to_make: as of `look`.
        places: where each setting is written, for the messages.
        here: whether the jobs run on this machine.

    Raises:
        InputError: every problem, one per line.
    """
    found = look(experiment, to_make=to_make)
    problems = found.problems + (machine(experiment, Path(), found, here=here) if to_make else [])
    if problems:
        lines = "".join(f"\n  {located(problem, places)}" for problem in problems)
        raise InputError(f"experiment {experiment.name} cannot be run as it is written; nothing was started:{lines}")
    return found.unknown


def located(problem: Problem, places: Places | None) -> str:
    """The problem in one line, after the file and line of its setting where these are known."""
    at = places.of_either(problem.place or problem.key, problem.against) if places else None
    return f"{at}: {problem}" if at else str(problem)


def look(experiment: Experiment, directory: Path = Path(), to_make: Collection[str] | None = None) -> Findings:
    """Every problem of an experiment, the cheapest looks first.

    Args:
        directory: where results/ lies, from which paths count.
        to_make: outputs that jobs are going to make, as the rules name them (results/NAME/...): what these are made
            from must be there. None = those that do not exist; () = look at no file.
    """
    results = directory / "results" / experiment.name
    wanted = _wanted(experiment, directory, to_make)
    rows, problems = _rows(experiment)
    problems += [*_names(experiment), *_tables(experiment, rows), *_cells(experiment, rows), *_images(experiment)]
    problems += [*_patches(experiment, rows), *_samples(experiment, rows), *_figures(experiment, rows)]
    looks = Looks(experiment, directory)
    counts = {split: _count(experiment, split, results, wanted, looks) for split in SPLITS}
    problems += [*_few_images(experiment, counts), *_few_references(experiment, counts, results, wanted)]
    cells = [cell for _, row in rows for cell in row.samples]
    problems += [*looks.problems()] if any(wanted(f"index/{split}.json") for split in SPLITS) else []
    needed = [path for path in user_paths(experiment, cells) if any(map(wanted, path.outputs))]
    problems += [problem for path in needed if (problem := _path(path, directory))]
    unknown = [
        f"the number of {split} images of {experiment.images.path(split)}: whether shards and batches fit them is "
        "said when they are indexed"
        for split in SPLITS
        if counts[split] is None and wanted(f"index/{split}.json")
    ]
    return Findings(list(dict.fromkeys(problems)), unknown, counts)


def images_of(experiment: Experiment, directory: Path) -> tuple[int, int] | None:
    """Images for training and held out, where they can be counted beforehand; ImageNet's, where it has its classes."""
    results = directory / "results" / experiment.name
    wanted, looks = _wanted(experiment, directory, None), Looks(experiment, directory)
    train, val = (_count(experiment, split, results, wanted, looks) for split in SPLITS)
    if train is not None and val is not None:
        return sum(train), sum(val)
    return IMAGENET_IMAGES if experiment.images.num_classes == NUM_CLASSES else None


def machine(experiment: Experiment, directory: Path, found: Findings, *, here: bool) -> list[Problem]:
    """Too little space or memory for the plan, where the images are counted and nothing else is wrong."""
    train, val = (found.counts.get(split) for split in SPLITS)
    if found.problems or train is None or val is None:
        return []
    from dpar.workflow import room  # imports PyTorch, which nothing else here needs
    from dpar.workflow.planning import Data

    data = Data(sum(train), sum(val), {})
    return list(room.problems(experiment, directory / "results" / experiment.name, data, here=here))


def _wanted(experiment: Experiment, directory: Path, to_make: Collection[str] | None) -> Callable[[str], bool]:
    """Whether an output, named below the experiment's results, is going to be made."""
    results = f"results/{experiment.name}"
    if to_make is None:
        return lambda output: not (directory / results / output).exists()
    named = frozenset(to_make)
    return lambda output: f"{results}/{output}" in named


def _rows(experiment: Experiment) -> tuple[list[tuple[str, Row]], list[Problem]]:
    """The rows that can be filled, each with where it is written, and what is wrong with the others."""
    rows, problems = [], []
    for where, values in written_rows(experiment):
        try:
            rows.append((where, resolved_row(experiment, where, values)))
        except InputError as error:
            reason = str(error).removeprefix(f"{where}: ").removeprefix(f"row {values}: ")
            said = f"row {values}", f"a row that can be filled: {reason}", "correct the row"
            refused = next((f": {key}" for key in values if key.endswith(f".{reason.partition(':')[0]}")), "")
            problems.append(Problem(where, *said, place=f"{where}, row {values}{refused}"))
    return rows, problems


def _at(where: str, row: Row, *names: str) -> str:
    """The key that decides: the first of the names that the row itself has, else the experiment's own, the last."""
    return next((f"{where}, row {row.values}: {name}" for name in names if name in row.values), names[-1])


def _names(experiment: Experiment) -> Iterator[Problem]:
    rules = {*RECIPES, "all"}
    for group in ("tables", "figures"):
        for name in rules & getattr(experiment, group).keys():
            yield Problem(f"{group}.{name}", "the name of a rule", "another name", "rename it")
    for name in experiment.gates:
        if name.endswith((".json", ".md")):
            yield Problem(f"gates.{name}", "the name of a file", "a name without .json and .md", "rename it")
    models = {name: (model,) for name, model in experiment.models.items()}
    gates = {name: (gate.model, gate.model_copy(update={"model": None})) for name, gate in experiment.gates.items()}
    for group, networks in (("models", models), ("gates", gates)):
        seen: dict[str, str] = {}
        for name, (model, *rest) in networks.items():
            sized = model.model_copy(update={"variant": None, **model.sizes})
            first = seen.setdefault(repr((sized, rest)), name)
            if first != name:
                same = f"the settings of {first} under another name"
                yield Problem(f"{group}.{name}", same, "settings of its own", "remove one: both would be trained alike")


def _tables(experiment: Experiment, rows: list[tuple[str, Row]]) -> Iterator[Problem]:
    """Tables without rows, settings that another one hides, and cells that are shown twice."""
    for name, table in experiment.tables.items():
        for key, values in table.vary.items():
            if not values:
                yield Problem(f"tables.{name}.vary.{key}", "no values", "one or more", "add some, or remove the key")
            if hidden := next((row for row in table.rows if key in row), None):
                yield Problem(
                    f"tables.{name}.vary.{key}", f"the row {hidden} with a value of its own, which is never used",
                    "the key in one of the two places", "remove it from the row, or from `vary`",
                )  # fmt: skip
    shown = defaultdict(list)
    for where, row in rows:
        shown[where, tuple(cell.slug for cell in row.samples)].append(row.values)
    for (where, slugs), same in shown.items():
        if len(same) > 1:
            found = f"{len(same)} rows of the one cell {slugs[0]}: {' and '.join(map(str, same))}"
            yield Problem(
                where, found, "one row per cell", "remove all but one, or correct what they vary",
                place=f"{where}, row {same[-1]}",
            )  # fmt: skip


def _cells(experiment: Experiment, rows: list[tuple[str, Row]]) -> Iterator[Problem]:
    """Names of cells that no file can have or that two share, and gates that are not used."""
    for where, row in rows:
        for slug in {cell.slug for cell in row.samples}:
            if (length := len(slug.encode())) > LONGEST_CELL:
                yield Problem(
                    where, f"the cell {slug} with a name of {length} bytes", f"at most {LONGEST_CELL}",
                    "shorten the name of the model, or change less in one row", place=f"{where}, row {row.values}",
                )  # fmt: skip
    used = {cell.gate for _, row in rows for cell in row.samples}
    for gate in experiment.gates.keys() - used:
        yield Problem(
            f"gates.{gate}", "a gate that no row of a table samples through", "one that is used",
            f"give a row `inference.gate: {gate}`, or remove the gate",
        )  # fmt: skip
    if len(rows) == sum(1 for _ in written_rows(experiment)) and experiment.gates.keys() <= used:
        try:
            model_cells(experiment)
            sample_cells(experiment)
        except InputError as error:
            yield Problem("models", str(error), "names that tell all cells apart", "rename one of them")


def _images(experiment: Experiment) -> Iterator[Problem]:
    """Sizes and classes that do not go together."""
    images, evaluation, training = experiment.images, experiment.evaluation, experiment.tokenizer.training
    if images.generated is not None:
        if images.num_classes > len(CLASSES):
            allowed = f"at most {len(CLASSES)}, which the package can draw"
            yield Problem("images.num_classes", f"{images.num_classes}", allowed, "lower it")
        if images.generated.train < images.num_classes:
            allowed = f"at least one of each of the {images.num_classes} classes"
            yield Problem("images.generated.train", f"{images.generated.train}", allowed, "raise it")
    side = evaluation.resolution or images.resolution
    if side > images.resolution:
        allowed = f"at most images.resolution, {images.resolution}: enlarged images show nothing more"
        yield Problem(
            "evaluation.resolution", f"{side}", allowed, "lower it, or leave it away", against="images.resolution"
        )
    if evaluation.extractor == "classifier" and side < LEAST_CLASSIFIED:
        key = "evaluation.resolution" if evaluation.resolution else "images.resolution"
        yield Problem(key, f"{side}", f"at least {LEAST_CLASSIFIED} pixels, which the classifier needs", "raise it")
    if training and training.adversarial_weight > 0 and images.resolution < LEAST_CRITIC_SIDE:
        allowed = f"at least {LEAST_CRITIC_SIDE} pixels, which the tokenizer's critic needs"
        remedy = "raise it, or set `tokenizer.training.adversarial_weight: 0`"
        yield Problem("images.resolution", f"{images.resolution}", allowed, remedy)


def longest_mean(tokens: int, grid_width: int, max_length: int | None, row_boundary: bool) -> float:
    """The mean patch length in tokens if no entropy opened a patch: the most that a threshold can be calibrated to."""
    forced = [t for t in range(tokens) if t <= 1 or (row_boundary and t % grid_width == 0)]
    patches = sum(-(-(stop - start) // (max_length or tokens)) for start, stop in pairwise([*forced, tokens]))
    return tokens / patches


def _patches(experiment: Experiment, rows: list[tuple[str, Row]]) -> Iterator[Problem]:
    """Mean patch lengths that no threshold gives."""
    tokens, width = experiment.grid[0] * experiment.grid[1], experiment.grid[1]
    own = experiment.patchify  # whose P_max and rows all thresholds are calibrated with

    def problem(key: str, patchify: Patchify) -> Iterator[Problem]:
        if patchify.is_dynamic:
            most = longest_mean(tokens, width, own.max_length, own.row_boundary)
            why = f"with patchify.max_length {own.max_length} and row_boundary {str(own.row_boundary).lower()}"
        else:
            most, why = float(tokens), "the tokens of an image"
        if patchify.p_avg is not None and patchify.p_avg > most * (1 + 1e-9):
            allowed = f"1 to {most:.4g}, {why}"
            found = f"{patchify.p_avg:g} on a grid of {tokens // width} x {width}"
            against = "patchify.max_length" if patchify.is_dynamic else "images.resolution"
            yield Problem(key, found, allowed, "lower it", against=against)

    if any(model.is_dpar for model in experiment.models.values()):
        yield from problem("patchify.p_avg", own)
    for where, row in rows:
        if row.model.transformer.is_dpar:
            yield from problem(_at(where, row, "patchify.p_avg"), row.model.patchify)
            yield from problem(_at(where, row, "inference.p_avg", "patchify.p_avg"), row.sample.patchify)


def _needed(experiment: Experiment) -> tuple[int, str, str]:
    """Number of images that every metric needs on either side, why, and the setting that asks for them."""
    evaluation, key = experiment.evaluation, "evaluation.k"
    reasons = [(evaluation.k + 1, f"precision and recall reach to neighbour {evaluation.k} ({key})", key)]
    of_network = (
        evaluation.classifier.dims if evaluation.extractor == "classifier" else DIMENSIONS.get(evaluation.extractor)
    )
    if dims := evaluation.dimensions or of_network:
        key = "evaluation.dimensions" if evaluation.dimensions else "evaluation.classifier.dims"
        splits = f"the Inception Score has {evaluation.splits} splits of two or more"
        reasons += [
            (dims + 1, f"the Frechet distance needs more than the {dims} dimensions of the features", key),
            (2 * evaluation.splits, splits, "evaluation.splits"),
        ]
    return max(reasons)


def _samples(experiment: Experiment, rows: list[tuple[str, Row]]) -> Iterator[Problem]:
    """Sets of samples that cannot be measured or divided."""
    needed, why, against = _needed(experiment)
    for where, row in rows:
        sampling = row.sample.sampling
        if sampling.num_images < needed:
            allowed = f"at least {needed}: {why}"
            key = _at(where, row, "sampling.num_images")
            remedy = "draw more, or lower that setting"
            yield Problem(key, f"{sampling.num_images}", allowed, remedy, against=against)
        if sampling.shards > sampling.num_images:
            allowed = f"at most the {sampling.num_images} images of a set"
            key = _at(where, row, "sampling.shards")
            yield Problem(key, f"{sampling.shards}", allowed, "lower it", against="sampling.num_images")
        if sampling.top_k > experiment.tokenizer.vocab_size:
            allowed = f"at most tokenizer.vocab_size, {experiment.tokenizer.vocab_size}; 0 for all codes"
            key = _at(where, row, "sampling.top_k")
            yield Problem(key, f"{sampling.top_k}", allowed, "lower it", against="tokenizer.vocab_size")


def _figures(experiment: Experiment, rows: list[tuple[str, Row]]) -> Iterator[Problem]:
    """Problems of figures whose classes are not among the first samples."""
    for where, row in rows:
        group, _, name = where.partition(".")
        sampling = row.sample.sampling
        if group == "figures" and sampling.labels == "balanced" and sampling.shards <= sampling.num_images:
            drawn = len(shard_of(sampling.num_images, sampling.batch_size, 0, sampling.shards))
            missing = [c for c in experiment.figures[name].classes if c >= drawn]
            if missing:
                allowed = f"classes below {drawn}: the first of {sampling.shards} shards has {drawn} images"
                yield Problem(f"{where}.classes", f"{missing}", allowed, "show others, or draw more in fewer shards")


def _count(
    experiment: Experiment, split: str, results: Path, wanted: Callable[[str], bool], looks: Looks
) -> list[int] | None:
    """Images that the split has, or at most has: of each class where that is known, else in one number."""
    images, index = experiment.images, f"index/{split}.json"
    if images.generated is not None:
        count = getattr(images.generated, split)
        return [len(range(c, count, images.num_classes)) for c in range(images.num_classes)]
    if not wanted(index):
        return _indexed(results / index)
    if images.source == "parquet":
        count = _parquet_rows(from_jobs(images.path(split) or "", results.parent.parent))
        if count is not None and images.held_out is not None:
            held = round(count * images.held_out)  # of classes that are not known here
            count = held if split == "val" else count - held
        if count is not None:
            return [min(count, getattr(images, f"max_{split}") or count)]
    return looks.counts(split)


def _indexed(path: Path) -> list[int] | None:
    """Images of each class that an index counts, from its first lines: the rest of it can be a hundred megabytes."""
    try:
        with open(path, encoding="utf-8") as file:
            for line in islice(file, 12):
                if found := re.match(r'\s*"class_counts": (\[[\d, ]*\])', line):
                    return json.loads(found[1])
    except (OSError, ValueError):
        return None  # the job that reads it says what is wrong
    return None


def _parquet_rows(pattern: str) -> int | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return sum(pq.read_metadata(path).num_rows for path in matching(pattern)) or None
    except (pa.ArrowException, OSError):
        return None  # `index_images` says what is wrong with it


def _few_images(experiment: Experiment, counts: dict[str, list[int] | None]) -> Iterator[Problem]:
    """Batches and shards that the images do not fill."""
    trainings = {"training": experiment.training, "tokenizer.training": experiment.tokenizer.training}
    trainings |= {f"{folder.replace('/', '.')}.training": n.training for folder, n in experiment.networks.items()}
    for split, classes in counts.items():
        if classes is None:
            continue
        count = sum(classes)
        allowed, remedy = f"at most the {count} {split} images", "lower it, or add images"
        if (shards := getattr(experiment.codes, f"{split}_shards")) > count:
            yield Problem(f"codes.{split}_shards", f"{shards}", allowed, remedy)
        for key, training in trainings.items() if split == "train" else ():
            if training is not None and training.batch_size > count:
                yield Problem(f"{key}.batch_size", f"{training.batch_size}", allowed, remedy)


def _few_references(
    experiment: Experiment, counts: dict[str, list[int] | None], results: Path, wanted: Callable[[str], bool]
) -> Iterator[Problem]:
    """Too few real images for the metrics, of which the noise floor compares two halves."""
    evaluation = experiment.evaluation
    needed, why, against = _needed(experiment)
    if evaluation.reference in SPLITS:
        classes = counts[evaluation.reference]
        if classes is None:
            return
        unseen = evaluation.reference == "train" and evaluation.extractor == "classifier"
        count = sum(n // 2 for n in classes) if unseen else sum(classes)
        source = f"{count} images" + (", the half that the classifier does not learn from" if unseen else "")
    else:
        if not wanted("features/reference.npz"):
            return
        shape = _shape_in(from_jobs(evaluation.reference, results.parent.parent))
        if shape is None or len(shape) < 2:
            return
        count, side = shape[0], evaluation.resolution or experiment.images.resolution
        source = f"{count} images in {evaluation.reference}"
        if shape[1] != side:
            allowed = f"images of {side} pixels, at which the samples are measured"
            yield Problem("evaluation.reference", f"images of {shape[1]} pixels", allowed, "give others, or correct it")
    if (chosen := evaluation.reference_images) is not None:
        if chosen > count:
            allowed = f"at most the {source}, of evaluation.reference"
            yield Problem("evaluation.reference_images", f"{chosen}", allowed, "lower it")
        elif chosen < 2 * needed:
            allowed = f"at least {2 * needed}, two halves of {needed} for the noise floor: {why}"
            remedy = "raise it, or lower that setting"
            yield Problem("evaluation.reference_images", f"{chosen}", allowed, remedy, against=against)
    if count < 2 * needed:
        allowed = f"at least {2 * needed}, two halves of {needed} for the noise floor: {why}"
        remedy = "give more images, or lower that setting"
        yield Problem("evaluation.reference", source, allowed, remedy, against=against)


def _shape_in(path: str) -> tuple[int, ...] | None:
    """Images in an npz file and their sides, by the header of `arr_0`; None if that cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as stream:
            return read_header(stream)[0]
    except Exception:  # anything that foreign bytes can bring about; the job that reads them says what is wrong
        return None


def _path(wanted: UserPath, directory: Path) -> Problem | None:
    """The fault of a path that is going to be read; None if there is none."""
    kinds = {
        "file": "a file that is not empty, of the kind that its suffix says",
        "folder": "a folder with images",
        "files": "a file, or a pattern of files",
    }
    remedy = "correct the path, or put there what is missing"
    try:
        found = found_instead(from_jobs(wanted.path, directory), wanted.kind)
        if (
            found is None
            and wanted.sha256
            and (sha256 := sha256_file(from_jobs(wanted.path, directory))) != wanted.sha256
        ):
            allowed = f"the SHA-256 {wanted.sha256} of {wanted.key}_sha256"
            return Problem(wanted.key, f"the SHA-256 {sha256}", allowed, "fetch the file again, or correct the digest")
        if found is None and wanted.kind == "file":
            found = other_kind(from_jobs(wanted.path, directory))
    except (OSError, ValueError) as error:  # the latter: letters that no path here can have
        found = str(error)
    return None if found is None else Problem(wanted.key, f"{wanted.path!r}, {found}", kinds[wanted.kind], remedy)
