"""Whatever setting a stage reads makes it out of date: found in the stage's source, tried on the rules' own recipes.

Settings are read as `experiment.a.b`, through names that stand for a part of it, through functions that are given the
experiment, and through cells, whose parts stand for those of the experiment.
"""

import ast
import copy
import importlib
import inspect
import itertools
import re
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_origin

import pytest
import yaml
from snakemake.api import SnakemakeApi
from snakemake.settings.types import ConfigSettings, OutputSettings, Quietness, ResourceSettings

from dpar.experiment.settings import TRAINING_PACE, Autoencoder, Experiment, Settings
from tests.experiment.test_settings import demo
from tests.workflow.conftest import ROOT
from tests.workflow.test_graph import RULES

# What a property of a group is computed from.
PROPERTIES = {
    "grid": ("images.resolution", "tokenizer.multipliers", "tokenizer.pixel_shuffle"),
    "codes.views": ("codes.crop_ranges", "codes.ten_crop"),
    "tokenizer.autoencoder": tuple(f"tokenizer.{name}" for name in Autoencoder.model_fields),
    "tokenizer.downsample": ("tokenizer.multipliers", "tokenizer.pixel_shuffle"),
    "training.unit": ("training.steps", "training.epochs"),
    "training.length": ("training.steps", "training.epochs"),
    "sampling.draw": tuple(f"sampling.{n}" for n in ("cfg_scale", "cfg_interval", "temperature", "top_k", "top_p")),
}
CELLS = {"transformer": "models", "patchify": "patchify", "sampling": "sampling", "training": "training"}
# They decide where or when something is made, and not what; or are the names of cells and states.
NEUTRAL = {
    *(f"{group}.{name}" for group in ("training", "entropy_model.training") for name in TRAINING_PACE),
    *("name", "images.classes", "images.credits", "training_seeds", "tokenizer.training.checkpoint_every"),
    *(
        "tokenizer.weights_sha256",
        "entropy_model.weights_sha256",
        "sampling.batch_size",
        "sampling.seeds",
        "sampling.compile",
    ),
}
# What only the pictures next to a training's curves are drawn with, which are no outputs of it.
PICTURED = {"train_model": "sampling."}
# Another value, where none can be made up from the one that is there.
OTHER: dict[str, dict[str, Any]] = {
    "images.source": {"images.source": "folder", "images.generated": None, "images.train": "a", "images.val": "b"},
    "images.train": {"images.source": "folder", "images.generated": None, "images.train": "a", "images.val": "b"},
    "images.val": {"images.source": "folder", "images.generated": None, "images.train": "a", "images.val": "b"},
    "images.held_out": {
        "images.source": "folder", "images.generated": None, "images.train": "a", "images.held_out": 0.1
    },
    "images.resolution": {"images.resolution": 128},
    "images.max_unreadable": {"images.max_unreadable": 0.5},
    "images.max_train": {"images.max_train": 20},
    "images.max_val": {"images.max_val": 20},
    "tokenizer.variant": {"tokenizer.multipliers": [1, 2, 2]},
    "tokenizer.weights": {"tokenizer.weights": "vq.pt", "tokenizer.training": None},
    "tokenizer.multipliers": {"tokenizer.multipliers": [1, 2, 2]},
    "tokenizer.pixel_shuffle": {"tokenizer.pixel_shuffle": 2},
    "tokenizer.training.epochs": {"tokenizer.training.epochs": 2, "tokenizer.training.steps": None},
    "tokenizer.training.betas": {"tokenizer.training.betas": [0.8, 0.95]},
    "tokenizer.training.cooldown": {"tokenizer.training.cooldown": 0.5},
    "tokenizer.training.perceptual_weight": {
        "tokenizer.training.perceptual_weight": 1.0, "tokenizer.training.perceptual_network": "vgg.pt"
    },
    "tokenizer.training.perceptual_network": {"tokenizer.training.perceptual_network": "vgg.pt"},
    "codes.format": {"codes.format": "webdataset"},
    "codes.crop_ranges": {"codes.crop_ranges": [1.2]},
    "entropy_model.kind": {"entropy_model.kind": "null_class"},
    "entropy_model.model": {"entropy_model.model.layers": 2},
    "entropy_model.weights": {
        "entropy_model.weights": "c2i.pt", "entropy_model.kind": "null_class", "entropy_model.training": None
    },
    "entropy_model.precision": {"entropy_model.precision": "bfloat16"},
    "entropy_model.training.betas": {"entropy_model.training.betas": [0.8, 0.95]},
    "entropy_model.training.precision": {"entropy_model.training.precision": "bfloat16"},
    "entropy_model.training.ema": {"entropy_model.training.ema": 0.99},
    "training.betas": {"training.betas": [0.8, 0.95]},
    "training.precision": {"training.precision": "bfloat16"},
    "training.ema": {"training.ema": 0.99},
    "patchify.strategy": {"patchify.strategy": "static"},
    "patchify.threshold": {"patchify.threshold": 3.0, "patchify.p_avg": None},
    "models": {"models.dpar.dropout": 0.3},
    "sampling.labels": {"sampling.labels": "uniform"},
    "sampling.cfg_interval": {"sampling.cfg_interval": [0.0, 0.5]},
    "sampling.precision": {"sampling.precision": "bfloat16"},
    "sampling.top_p": {"sampling.top_p": 0.5},
    "evaluation.extractor": {"evaluation.extractor": "mine.pt"},
    "evaluation.inception_weights": {
        "evaluation.extractor": "inception", "evaluation.inception_weights": "inception.pth"
    },
    "images.num_classes": {"images.num_classes": 7},  # the package draws eight at most
    "evaluation.reference": {"evaluation.reference": "val"},
    "evaluation.reference_images": {"evaluation.reference_images": 100},
    "evaluation.dimensions": {"evaluation.dimensions": 4},
    "evaluation.resolution": {"evaluation.resolution": 32},
    "tables": {"tables.comparison.title": "Another"},
    "figures": {"figures": {"f": {"title": "F", "rows": [{"model": "dpar"}], "classes": [1]}}},
}  # fmt: skip


def fields(path: str) -> type[Settings] | None:
    """The group of settings at a path, or None for a single setting (lists and dictionaries are single)."""
    group: type[Settings] = Experiment
    for name in filter(None, path.split(".")):
        if name not in group.model_fields:
            return None
        annotation = group.model_fields[name].annotation
        if get_origin(annotation) is dict:
            return None
        options = [a for a in (annotation, *getattr(annotation, "__args__", ())) if isinstance(a, type)]
        inner = [a for a in options if issubclass(a, Settings)]
        if not inner or name == "model":
            return None
        group = inner[0]
    return group


def leaves(path: str) -> Iterator[str]:
    """The single settings at and below a path."""
    if (group := fields(path)) is None:
        yield path
    else:
        for name in group.model_fields:
            yield from leaves(f"{path}.{name}".strip("."))


class Reads(ast.NodeVisitor):
    """The settings that a function reads, and those of the functions that it gives the experiment to."""

    def __init__(self, function: Any, known: dict[str, str], seen: set):
        self.module, self.known, self.found, self.seen = inspect.getmodule(function), known, set(), seen
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        for node in ast.walk(tree):  # names that stand for a part, wherever they are given
            if isinstance(node, ast.Assign):
                self._alias(node.targets[0], node.value)
        self.visit(tree)

    def _alias(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, other in zip(target.elts, value.elts, strict=True):
                self._alias(one, other)
        elif isinstance(target, ast.Name) and (path := self._path(value)) and fields(path):
            self.known[target.id] = path

    def _path(self, node: ast.expr) -> str | None:
        """The place in the experiment that an expression names, as far as it is one."""
        if isinstance(node, ast.Name):
            return self.known.get(node.id)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "load_experiment":
            return ""
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "experiment.network":
            return "entropy_model"
        if not isinstance(node, ast.Attribute):
            return None
        path = self._path(node.value)
        if path is None:
            cell = re.match(r"(cells?|row|model|sample|c)\b", ast.unparse(node.value))
            return CELLS.get(node.attr) if cell else None
        group, inner = fields(path), f"{path}.{node.attr}".strip(".")
        return inner if group is not None and (node.attr in group.model_fields or inner in PROPERTIES) else path

    def visit_Assign(self, node: ast.Assign) -> None:
        names = getattr(node.targets[0], "elts", [node.targets[0]])
        values = getattr(node.value, "elts", [node.value])
        pairs = zip(names, values, strict=True) if len(names) == len(values) else [(None, node.value)]
        for name, value in pairs:
            if not (isinstance(name, ast.Name) and name.id in self.known):
                self.visit(value)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        path = self._path(node)
        if path is None:
            self.generic_visit(node)
        elif path:
            self._read(path)

    def visit_Name(self, node: ast.Name) -> None:
        if self.known.get(node.id):
            self._read(self.known[node.id])

    def visit_Call(self, node: ast.Call) -> None:
        function = getattr(self.module, ast.unparse(node.func).partition(".")[0], None)
        for name in ast.unparse(node.func).split(".")[1:]:
            function = getattr(function, name, None)
        given = [(i, arg) for i, arg in enumerate(node.args) if self._path(arg) == ""]
        if given and inspect.isfunction(function) and function.__module__ != "dpar.experiment.cells":
            names = list(inspect.signature(function).parameters)
            key = (function, tuple(i for i, _ in given))
            if key not in self.seen:
                self.seen.add(key)
                self.found |= Reads(function, {names[i]: "" for i, _ in given}, self.seen).found
        self.generic_visit(node)

    def _read(self, path: str) -> None:
        for place in PROPERTIES.get(path, (path,)):
            self.found |= set(leaves(place))


def reads(stage: str) -> set[str]:
    """The settings that a stage reads."""
    module = importlib.import_module(f"dpar.stages.{stage}")
    seen: set = set()
    return set().union(
        *(
            Reads(function, {"experiment": ""}, seen).found
            for _, function in inspect.getmembers(module, inspect.isfunction)
            if function.__module__ == module.__name__
        )
    )


def recipes(values: Mapping[str, Any], folder: Path) -> dict[str, set[str]]:
    """Rule -> its recipes for wildcards of every kind, with the experiment `values`."""
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(dict(values)))
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
        opened = api.workflow(
            resource_settings=ResourceSettings(cores=1),
            config_settings=ConfigSettings(configfiles=[path]),
            snakefile=ROOT / "Snakefile",
            workdir=folder,
        )
        rules = list(opened._workflow.rules)
    found: dict[str, set[str]] = {}
    kinds = {
        "split": ("train", "val"), "model": ("dpar", "llamagen"), "cell": ("dpar", "llamagen"), "store": ("scored",),
        "table": ("comparison", "threshold_by_length"), "features": ("reference", "dpar/seed0"),
        "figure": ("samples", *values.get("figures", ())), "milestone": ("step400",), "seed": ("0",),
        "shard": ("00000",), "network": ("entropy_model",), "gate": ("none",),
    }  # fmt: skip
    for rule in rules:
        recipe = dict(rule.params.items()).get("recipe")
        if recipe is None:
            continue
        wildcards = itertools.product(*kinds.values()) if callable(recipe) else [()]
        chosen = (types.SimpleNamespace(**dict(zip(kinds, w, strict=False))) for w in wildcards)
        found[rule.name] = {recipe(w) if callable(recipe) else recipe for w in chosen}
    return found


def changed(values: Mapping[str, Any], setting: str) -> dict[str, Any]:
    """`values` with another value for one setting."""
    other = copy.deepcopy(dict(values))
    for path, value in (OTHER.get(setting) or {setting: ...}).items():
        *groups, name = path.split(".")
        place = other
        for group in groups:
            place = place.setdefault(group, {})
        if value is ...:
            group = fields(".".join(groups))
            assert group is not None, setting
            old = place.get(name, group.model_fields[name].default)
            assert isinstance(old, bool | int | float), f"say in OTHER what {setting} could be instead of {old!r}"
            value = not old if isinstance(old, bool) else old + 1 if isinstance(old, int) else old * 0.5 + 0.7
        if value is None:
            place.pop(name, None)
        else:
            place[name] = value
    return other


def ancestors(folder: Path) -> dict[str, set[str]]:
    """Rule -> all rules that make what it is made from, of the demo."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", folder]
    command += ["--cores", "1", "--rulegraph"]
    graph = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True, timeout=600).stdout
    names = dict(re.findall(r'^\s*(\d+)\[label = "(\w+)"', graph, re.MULTILINE))
    above: dict[str, set[str]] = {name: set() for name in names.values()}
    for source, target in re.findall(r"^\s*(\d+) -> (\d+)", graph, re.MULTILINE):
        above[names[target]].add(names[source])
    for _ in names:
        above = {rule: makers.union(*(above[maker] for maker in makers)) for rule, makers in above.items()}
    return above


def unnoticed(
    read: Mapping[str, set[str]], moved: Mapping[str, set[str]], above: Mapping[str, set[str]]
) -> list[tuple[str, str]]:
    """(stage, setting) that the stage reads and that makes neither it nor anything that it is made from out of date.

    Args:
        read: stage -> the settings that it reads.
        moved: setting -> the rules whose recipe it changes.
        above: rule -> what it is made from.
    """
    return [
        (stage, setting)
        for stage, settings in read.items()
        for setting in sorted(settings - NEUTRAL)
        if not moved[setting] & ({stage} | above[stage]) and not setting.startswith(PICTURED.get(stage, "\0"))
    ]


@pytest.mark.slow
def test_every_setting_that_a_stage_reads_makes_it_out_of_date(tmp_path):
    values, above = demo(), ancestors(tmp_path)
    read = {stage: reads(stage) for stage in sorted(RULES) if stage in above}
    assert len(read) > 20
    usual = recipes(values, tmp_path)
    moved = {}
    for setting in sorted(set().union(*read.values()) - NEUTRAL):
        other = recipes(changed(values, setting), tmp_path)
        # a rule that is there with one value alone is out of date with the other
        moved[setting] = {rule for rule in {*usual, *other} if usual.get(rule) != other.get(rule)}
    assert unnoticed(read, moved, above) == []
    # and the test would see it
    moved["evaluation.k"] = moved["evaluation.k"] - {"compute_metrics"}
    assert ("compute_metrics", "evaluation.k") in unnoticed(read, moved, above)


def test_batches_matter_where_shards_are_made_of_whole_ones(tmp_path):
    for shards, matters in ((1, False), (3, True)):
        values = demo(sampling={**demo()["sampling"], "shards": shards})
        usual, other = (recipes({**v}, tmp_path) for v in (values, changed(values, "sampling.batch_size")))
        assert (usual["sample_images"] != other["sample_images"]) is matters


def test_compiled_code_draws_nothing_again(tmp_path):
    usual, other = (recipes({**v}, tmp_path) for v in (demo(), changed(demo(), "sampling.compile")))
    assert {rule for rule in usual if usual[rule] != other[rule]} == {"write_report"}, "which prints all settings"


def test_reads_are_found_through_names_functions_and_cells():
    assert {"evaluation.k", "evaluation.splits", "seed"} <= reads("compute_metrics")
    assert {"sampling.num_images", "evaluation.k"} <= reads("measure_noise_floor")
    assert {"sampling.cfg_scale", "sampling.top_p", "patchify.max_length", "evaluation.resolution"} <= reads(
        "sample_images"
    )
    assert {"training.learning_rate", "models", "images.num_classes", "tokenizer.vocab_size"} <= reads("train_model")
    assert "evaluation.k" not in reads("train_model")
    assert {"entropy_model.kind", "entropy_model.model"} <= reads("score_entropies")
    assert "training.learning_rate" not in reads("sample_images")
