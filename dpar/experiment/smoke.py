"""Smoke runs: an experiment cut short, so that every command of its run has run once before it starts.

What decides which rules run, and with which files and kinds of settings, stays: tables, figures, targets, gates,
imported weights, feature network, reference, crops, formats. Cut is how much of it is done: images, lengths of
trainings, samples, shards, seeds; and of rows, or values of `vary`, that differ in numbers alone the first and the last
are left. A `tiny` smoke leaves the last alone, and has small networks and batches, where nothing is imported.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from dpar.errors import InputError
from dpar.experiment.cells import shard_of
from dpar.experiment.composing import Places
from dpar.experiment.loading import compose_experiment
from dpar.experiment.settings import SMOKE_SUFFIX, Experiment, Transformer

Smoke = Literal["short", "tiny"]
SMOKES: tuple[Smoke, ...] = get_args(Smoke)

EPOCHS, STEPS = 1, 2  # from one kept state of a training to the next
SHARDS = SEEDS = SPLITS = 2
DIMENSIONS, NEIGHBOURS = 4, 3
LEAST = DIMENSIONS + 1  # images on either side of a comparison
HELD_OUT = {"short": 64, "tiny": 24}
PACE = {"checkpoint_every": 3, "validate_every": 2, "log_every": 1}
DEPTHS = ("layers", "encoder_layers", "decoder_layers")
# A tiny smoke's.
BATCH, DRAWN, WIDTH, HEADS, CHANNELS, CODES = 8, 16, 32, 2, 8, 64


def composed(
    files: Sequence[str | Path],
    changes: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    smoke: Smoke | None = None,
) -> tuple[Experiment, Places]:
    """The experiment that `compose_experiment` gives, or its smoke, and where each of its settings is written.

    Raises:
        InputError: as `compose_experiment`, or as `smoke_of`.
    """
    experiment, places = compose_experiment(files, changes, config)
    if smoke is None:
        return experiment, places
    cut = smoke_of(experiment, smoke)
    return cut, places.over(f"--smoke {smoke}", experiment.model_dump(mode="json"), cut.model_dump(mode="json"))


def smoke_of(experiment: Experiment, kind: Smoke) -> Experiment:
    """The experiment cut to a few images, steps and samples, under a name of its own.

    Args:
        kind: `short`: networks and batches as they are, so that memory is tried too; `tiny`: both small.

    Raises:
        InputError: it is a smoke already.
    """
    if experiment.is_smoke:
        raise InputError(f"{experiment.name} is a smoke already; give the experiment that it was made of")
    values = experiment.model_dump(mode="json") | {"name": f"{experiment.name}{SMOKE_SUFFIX}"}
    _cut_rows(values, first=kind == "short")
    _cut_trainings(values, apart=kind == "short")
    if kind == "tiny":
        _shrink(values)
    _cut_sampling(values, SHARDS if kind == "short" else 1)
    _cut_measuring(values)
    _cut_images(values, HELD_OUT[kind])
    _cut_figures(values)
    return Experiment.model_validate(values)


def _cut_rows(values: dict[str, Any], *, first: bool) -> None:
    """Of rows that differ in numbers alone, and of varied numbers, the last and perhaps the first."""
    for table in values["tables"].values():
        table["rows"] = _ends(table["rows"], first)
        table["vary"] = {key: _ends(varied, first) for key, varied in table["vary"].items()}
    for figure in values["figures"].values():
        figure["rows"] = _ends(figure["rows"], first)


def _ends(entries: Sequence[Any], first: bool) -> list[Any]:
    """The last, and if asked the first, of entries that are alike but for their numbers, in their order."""
    places: dict[str, list[int]] = {}
    for place, entry in enumerate(entries):
        places.setdefault(repr(_without_numbers(entry)), []).append(place)
    kept = {i for alike in places.values() for i in (alike[-1], *alike[: int(first)])}
    return [entries[i] for i in sorted(kept)]


def _without_numbers(entry: Any) -> Any:
    if isinstance(entry, Mapping):
        return sorted((key, repr(_without_numbers(v))) for key, v in entry.items() if not key.startswith("paper."))
    return "a number" if isinstance(entry, int | float) and not isinstance(entry, bool) else entry


def _rows(values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Whatever holds settings of cells: the rows of tables and figures, and what tables share and vary."""
    for table in values["tables"].values():
        yield from (table["base"], *table["rows"])
    for figure in values["figures"].values():
        yield from figure["rows"]


def _named(values: Mapping[str, Any], key: str) -> list[Any]:
    """The values that rows have for a key, each once."""
    found = [row[key] for row in _rows(values) if key in row]
    found += [value for table in values["tables"].values() for value in table["vary"].get(key, ())]
    return list(dict.fromkeys(tuple(value) if isinstance(value, list) else value for value in found))


def _replace(values: dict[str, Any], key: str, new: Mapping[Any, Any]) -> None:
    """Puts other values in the place of those that rows have for a key."""
    for row in _rows(values):
        if key in row:
            row[key] = new[row[key]]
    for table in values["tables"].values():
        if key in table["vary"]:
            table["vary"][key] = [new[value] for value in table["vary"][key]]


def _cut_trainings(values: dict[str, Any], *, apart: bool) -> None:
    """Trainings of a few steps or epochs; of the milestones those that rows name, or one.

    Args:
        apart: each milestone on a step of its own; else all on one, since no two rows differ in them alone.
    """
    training = values["training"]
    unit = "steps" if training["steps"] else "epochs"
    named = [m for m in training["milestones"] if m in _named(values, "milestone")] or training["milestones"][:1]
    pace = EPOCHS if unit == "epochs" else STEPS
    places = {old: min(old, pace * (i + 1 if apart else 1)) for i, old in enumerate(named)}
    kept = sorted({*places.values()})
    places[training[unit]] = min(training[unit], pace * (len(kept) + 1))
    training |= {unit: places[training[unit]], "milestones": kept} | PACE
    _replace(values, "milestone", places)
    for network in (values["entropy_model"], *values.get("gates", {}).values()):
        if network["training"]:
            network["training"] |= _length(network["training"]) | {"milestones": []} | PACE
    if tokenizer := values["tokenizer"]["training"]:
        tokenizer |= _length(tokenizer) | {"checkpoint_every": PACE["checkpoint_every"]}
        tokenizer["adversarial_start"] = min(1, tokenizer["adversarial_start"])
    values["training_seeds"] = sorted(values.get("training_seeds", ()), key=lambda s: s != values["seed"])[:SEEDS]


def _length(training: Mapping[str, Any]) -> dict[str, int]:
    return {unit: min(training[unit], most) for unit, most in (("steps", STEPS), ("epochs", EPOCHS)) if training[unit]}


def _shrink(values: dict[str, Any]) -> None:
    """Small networks, where they are trained here, and small batches; what was larger than another stays so."""
    own = [values["entropy_model"], *values.get("gates", {}).values()]
    networks = [*values["models"].values(), *(network["model"] for network in own if network["training"])]
    sizes = [Transformer.model_validate(network).sizes for network in networks]
    widths = sorted({size["width"] for size in sizes} | {*_named(values, "transformer.width")})
    kinds = [((size["architecture"], size["width"]), [size[name] or 0 for name in DEPTHS]) for size in sizes]
    for network, size, (kind, depths) in zip(networks, sizes, kinds, strict=True):
        alike = sorted({tuple(others) for other, others in kinds if other == kind})
        network |= {
            "width": WIDTH * (1 + widths.index(size["width"])),
            "heads": HEADS,
            "layers": 1 + alike.index(tuple(depths)),
        }
        for name in DEPTHS[1:]:  # those that rows vary stay, in the rows and out of them
            if size[name] and not _named(values, f"transformer.{name}"):
                network[name] = 1
    _replace(values, "transformer.width", {width: WIDTH * (1 + i) for i, width in enumerate(widths)})
    depths = sorted(_named(values, "transformer.layers"))
    _replace(values, "transformer.layers", {depth: 1 + i for i, depth in enumerate(depths)})
    _replace(values, "transformer.heads", {h: min(h, HEADS) for h in _named(values, "transformer.heads")})
    for training in (values["training"], *(network["training"] for network in own)):
        if training:
            training["batch_size"] = min(training["batch_size"], BATCH * training["accumulate"])
    values["sampling"]["batch_size"] = min(values["sampling"]["batch_size"], DRAWN)
    _replace(values, "sampling.batch_size", {n: min(n, DRAWN) for n in _named(values, "sampling.batch_size")})
    if values["tokenizer"]["training"]:
        _shrink_tokenizer(values)
    classifier = values["evaluation"]["classifier"]
    classifier["channels"] = min(classifier["channels"], CHANNELS)


def _shrink_tokenizer(values: dict[str, Any]) -> None:
    tokenizer = values["tokenizer"]
    codes = max(CODES, values["sampling"]["top_k"], *_named(values, "sampling.top_k"))
    groups = min(tokenizer["groups"], CHANNELS)
    tokenizer |= {
        "vocab_size": min(tokenizer["vocab_size"], codes),
        "groups": groups,
        "channels": groups * max(1, CHANNELS // groups),
        "z_channels": min(tokenizer["z_channels"], 2 * CHANNELS),
        "residual_blocks": 1,
    }
    tokenizer["training"]["batch_size"] = min(tokenizer["training"]["batch_size"], BATCH)


def _fewer(numbers: Collection[int], most: int) -> dict[int, int]:
    """Each number and one of at most so much in its place, or a little more where others have these."""
    found: dict[int, int] = {}
    last = 0
    for number in sorted(numbers):
        found[number] = last = min(number, max(most, last + 1))
    return found


def _cut_sampling(values: dict[str, Any], parts: int) -> None:
    """Samples of one batch for each of at most so many shards; other numbers of rows on numbers of their own."""
    sampling = values["sampling"]
    sizes = {sampling["batch_size"], *_named(values, "sampling.batch_size")}
    few = _fewer({sampling["shards"], *_named(values, "sampling.shards")}, parts)
    counts = {sampling["num_images"], *_named(values, "sampling.num_images")}
    drawn = _fewer(counts, max(LEAST, max(few.values()) * max(sizes)))
    sampling |= {
        "num_images": drawn[sampling["num_images"]],
        "shards": few[sampling["shards"]],
        "seeds": sampling["seeds"][:SEEDS],
        "labels": "balanced",  # of few images drawn at random none may be of a class that is shown
    }
    for row in _rows(values):
        if "sampling.seeds" in row:
            row["sampling.seeds"] = list(row["sampling.seeds"])[:SEEDS]
    _replace(values, "sampling.num_images", drawn)
    _replace(values, "sampling.shards", few)
    _replace(values, "sampling.labels", dict.fromkeys(_named(values, "sampling.labels"), "balanced"))


def _cut_measuring(values: dict[str, Any]) -> None:
    """Metrics in the first dimensions of the features: all of them ask for more images than there are."""
    evaluation = values["evaluation"]
    of_split = evaluation["reference"] in ("train", "val")
    evaluation["dimensions"] = min(evaluation.get("dimensions") or DIMENSIONS, DIMENSIONS)
    if evaluation["extractor"] == "classifier":
        evaluation["dimensions"] = min(evaluation["dimensions"], evaluation["classifier"]["dims"])
    evaluation |= {
        "splits": min(evaluation["splits"], SPLITS),
        "k": min(evaluation["k"], NEIGHBOURS),
        "reference_images": None if of_split else 2 * LEAST,
    }
    classifier, probe = evaluation["classifier"], evaluation["linear_probe"]
    classifier |= {"steps": min(classifier["steps"], STEPS), "batch_size": min(classifier["batch_size"], 2 * LEAST)}
    probe["iterations"] = min(probe["iterations"], 5)


def _cut_images(values: dict[str, Any], held_out: int) -> None:
    """As many images as the largest batch needs twice, and the metrics; fewer shards of codes."""
    images, codes = values["images"], values["codes"]
    codes |= {name: min(codes[name], SHARDS) for name in ("train_shards", "val_shards")}
    networks = (values, values["tokenizer"], values["entropy_model"], *values.get("gates", {}).values())
    batches = [network["training"]["batch_size"] for network in networks if network["training"]]
    train = max(2 * max(batches), 2 * LEAST)
    if values["evaluation"]["extractor"] == "classifier":  # which learns from a half of each class
        train = max(train, 4 * LEAST + 2 * images["num_classes"])
    if images["generated"]:
        images["generated"] = {
            "train": min(images["generated"]["train"], max(train, images["num_classes"])),
            "val": min(images["generated"]["val"], held_out),
        }
    else:
        images["max_train"] = min(images.get("max_train") or train, train)
        images["max_val"] = min(images.get("max_val") or held_out, held_out)
    if images["max_unreadable"]:  # of few images, one is a large share
        images["max_unreadable"] = max(images["max_unreadable"], 0.5)


def _cut_figures(values: dict[str, Any]) -> None:
    """Figures of classes that are among the samples of their first shard."""
    for figure in values["figures"].values():
        drawn = []
        for row in figure["rows"]:
            sampling = {key: row.get(f"sampling.{key}", value) for key, value in values["sampling"].items()}
            first = shard_of(sampling["num_images"], sampling["batch_size"], 0, sampling["shards"])
            drawn.append(min(len(first), values["images"]["num_classes"]))
        figure["classes"] = list(dict.fromkeys(label % min(drawn) for label in figure["classes"]))
