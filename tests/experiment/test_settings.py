"""Experiments: what is refused, and that each message names the key."""

import re
from pathlib import Path

import pytest
import yaml

from dpar.errors import InputError
from dpar.experiment.loading import load_experiment, parse_experiment
from dpar.experiment.reading import read_yaml
from dpar.experiment.settings import Tokenizer

CONFIG = Path(__file__).resolve().parents[2] / "config"
SHIPPED = sorted(path.stem for path in CONFIG.glob("*.yaml"))


def demo(**changes):
    """The demo's settings with `group__key=value` replaced."""
    values = yaml.safe_load((CONFIG / "demo.yaml").read_text())
    for path, value in changes.items():
        *groups, key = path.split("__")
        place = values
        for group in groups:
            place = place[group]
        place[key] = value
    return values


def test_the_page_on_experiments_has_a_row_for_each_file():
    page = (CONFIG / "README.md").read_text(encoding="utf-8")
    listed = [name for name in re.findall(r"^\| `(\S+)\.yaml` \|", page, re.MULTILINE) if "/" not in name]
    bases = re.findall(r"^\| `base/(\S+)\.yaml` \|", page, re.MULTILINE)
    assert (sorted(listed), sorted(bases)) == (SHIPPED, sorted(path.stem for path in CONFIG.glob("base/*.yaml")))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_experiments_are_valid_and_named_after_their_file(name):
    assert load_experiment(CONFIG / f"{name}.yaml").name == name


def test_figures_of_samples_that_are_stored_at_another_size_say_so():
    experiment = load_experiment(CONFIG / "imagenet384.yaml")
    assert experiment.evaluation.resolution != experiment.images.resolution
    titles = [figure.title for figure in experiment.figures.values()]
    assert len(titles) == 4
    assert all(
        title.endswith(f"shown at the {experiment.evaluation.resolution} pixels that are evaluated") for title in titles
    )


def test_a_resolved_experiment_reads_back_equal(tmp_path):
    experiment = load_experiment(CONFIG / "demo.yaml")
    path = tmp_path / "experiment.json"
    path.write_text(experiment.model_dump_json())
    assert load_experiment(path) == experiment


@pytest.mark.parametrize(("variant", "downsample"), [("VQ-16", 16), ("VQ-8", 8)])
def test_a_tokenizer_has_the_sizes_of_its_variant_but_for_those_given(variant, downsample):
    tokenizer = Tokenizer(variant=variant, weights="vq.pt")
    assert tokenizer.downsample == downsample
    assert Tokenizer.model_validate(tokenizer.model_dump(mode="json")) == tokenizer
    assert Tokenizer(variant=variant, weights="vq.pt", multipliers=(1, 2), vocab_size=32).downsample == 2
    assert Tokenizer(weights="vq.pt").autoencoder == Tokenizer(variant="VQ-16", weights="vq.pt").autoencoder


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_rat": 1e-4}, "learning_rat"),
        ({"training__learning_rat": 1e-4}, "training.learning_rat"),
        ({"images__resolution": 60}, "images.resolution"),
        ({"models__dpar__heads": 5}, "heads"),
        ({"models__dpar__width": 24}, "multiple of 16"),
        ({"models__dpar__variant": "DPAR-M"}, "DPAR-M"),
        ({"models__llamagen__encoder_layers": 1}, "encoder_layers"),
        ({"patchify__threshold": 4.0}, "both given"),
        ({"patchify": {"max_length": 4}}, "p_avg"),
        ({"patchify__max_length": 0}, "max_length"),
        ({"patchify": {"threshold": float("nan")}}, "patchify.threshold"),
        ({"patchify": {"p_avg": float("inf")}}, "patchify.p_avg"),
        ({"tokenizer__variant": "VQ-4"}, "tokenizers are VQ-16, VQ-8"),
        ({"tokenizer__variant": ["VQ-8"]}, "tokenizer.variant"),
        ({"training__epochs": 3}, "exactly one of `steps` and `epochs`"),
        ({"training__milestones": [400]}, "milestones"),
        ({"images__source": "folder"}, "train"),
        ({"tokenizer__weights": "vq.pt"}, "exactly one of `weights`"),
        ({"tokenizer__training__perceptual_weight": 1.0}, "perceptual_network"),
        ({"evaluation__extractor": "inception"}, "inception_weights"),
        ({"evaluation__extractor": "clasifier"}, "evaluation.extractor"),
        ({"entropy_model__model": {"variant": "DPAR-B"}}, "LlamaGen"),
        ({"entropy_model__kind": "distilled"}, "only `gates` are distilled"),
        ({"gates": {"g": {"kind": "distilled"}}}, "gates.g: give exactly one of `weights`"),
        ({"gates": {"g": {"kind": "distilled", "weights": "c2i_B_256.pt"}}}, "set `kind: null_class`"),
        ({"sampling__cfg_scale": -1}, "cfg_scale"),
        ({"sampling__seeds": [1, 1]}, "seeds"),
        ({"sampling__seeds": [-1]}, "seeds"),
        ({"seed": -1}, "seed"),
        ({"training_seeds": [0, 0]}, "training_seeds"),
        ({"training_seeds": [1, 2]}, "training_seeds"),
        ({"codes__crop_ranges": [0.9]}, "crop_ranges"),
        ({"training__betas": [0.9, 1.0]}, "betas"),
        ({"models": {"a b;/x": {"variant": "DPAR-B"}}}, "models"),
        ({"evaluation__resolution": 0}, "resolution"),
        ({"name": "a" * 300}, "name: a name may have 100 bytes, this one has 300"),
        ({"name": "../demo"}, r"name: expected text that matches ^[a-z0-9_]+(\.smoke)?$, found '../demo'"),
        ({"name": "~demo"}, "name"),
        ({"name": "<b>"}, "name"),
        ({"name": "demo\n"}, "name"),
        ({"models": {"m" * 300: {"variant": "DPAR-B"}}}, "models"),
        ({"models": {"..": {"variant": "DPAR-B"}}}, "models"),
        ({"models": {"$(id)": {"variant": "DPAR-B"}}}, "models"),
        ({"gates": {"~": {"training": {"steps": 1}}}}, "gates"),
        ({"tables": {"t" * 300: {"title": "t", "rows": [{"model": "dpar"}]}}}, "tables"),
        ({"tables": {"ü" * 51: {"title": "t", "rows": [{"model": "dpar"}]}}}, "this one has 102"),
        ({"tables": {"<script>": {"title": "t", "rows": [{"model": "dpar"}]}}}, "tables"),
        ({"figures": {"a/../b": {"title": "t", "rows": [{"model": "dpar"}], "classes": [0]}}}, "figures"),
        ({"sampling__cfg_scale": float("inf")}, "sampling.cfg_scale"),
        ({"training__learning_rate": float("nan")}, "training.learning_rate"),
        ({"seed": 2**64}, "seed"),
        ({"training__steps": True}, "training.steps: expected a number, not true or false"),
        ({"patchify__max_length": True}, "patchify.max_length: expected a number, not true"),
        ({"codes__crop_ranges": [1.5, True]}, "codes.crop_ranges: expected a number, not true"),
        ({"training__weight_decay": False}, "training.weight_decay: expected a number, not true"),
        ({"training__batch_size": 10**30}, "training.batch_size: expected a number of at most 19 digits"),
        ({"images__num_classes": 10**9}, "images.num_classes"),
        ({"patchify__max_length": 2**40}, "patchify.max_length"),
        ({"tokenizer__multipliers": [1, 0]}, "tokenizer.multipliers.1"),
        ({"tokenizer__multipliers": [1, -2]}, "tokenizer.multipliers.1"),
        ({"sampling__cfg_scale": 1e38}, "sampling.cfg_scale"),
        ({"sampling__temperature": 1e-45}, "sampling.temperature"),
    ],
)
def test_a_contradiction_is_refused_and_named(changes, named):
    with pytest.raises(InputError, match=r"not a valid experiment") as error:
        parse_experiment(demo(**changes), "test.yaml")
    assert named in str(error.value)
    assert "test.yaml" in str(error.value)


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_experiment(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(InputError, match="is not YAML"):
        load_experiment(tmp_path / "broken.yaml")
    with pytest.raises(InputError, match="is a folder"):
        load_experiment(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"name: !!python/object/apply:os.system ['touch was_run']", "could not determine a constructor"),
        (b"name: !!python/name:os.system", "could not determine a constructor"),
        (b"name: !new:os.system", "could not determine a constructor"),
        (b"name: demo\nseed: 0\nname: other", "the key 'name' is there twice"),
        (b"training: {steps: 3, steps: 4}", "the key 'steps' is there twice"),
        ("name: größe".encode("latin-1"), "not YAML in UTF-8"),
        (b"\x00\x01\x02", "not YAML"),
        (b"seed: " + b"9" * 5000, "not YAML"),
        (b"title: 2026-13-45", "not YAML"),
        (b"[" * 5000, "not YAML"),
        (b"a: 1\n---\na: 2", "not YAML"),
        (b"", "not a valid experiment"),
        (b"- demo", "not a valid experiment"),
        (b"1: demo", "not a valid experiment"),
        (b"training: {steps: 010}", "010 is a number in base 8 to YAML: write it in base 10"),
        (b"seed: -0_17", "base 8"),
        (b"training:\n  steps: 1:30", "1:30 is a number in base 60 to YAML"),
        (b"training:\n  learning_rate: 1:30.5", "base 60"),
    ],
)
def test_a_file_that_is_more_or_less_than_an_experiment_is_refused_in_words(tmp_path, monkeypatch, text, said):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mistaken.yaml"
    path.write_bytes(text)
    with pytest.raises(InputError, match=said) as error:
        load_experiment(path)
    assert "mistaken.yaml" in str(error.value)
    assert list(tmp_path.iterdir()) == [path], "a tag was run"


def test_aliases_cannot_say_more_than_memory_holds(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    for text in ("\n".join(lines), "a: &a [*a]"):
        (tmp_path / "bomb.yaml").write_text(text)
        with pytest.raises(InputError, match="holds more than 100,000 values"):
            load_experiment(tmp_path / "bomb.yaml")


def test_an_anchor_that_is_merged_and_changed_is_no_key_twice(tmp_path):
    (tmp_path / "merged.yaml").write_text("a: &a {b: 1, c: 2}\nd: &d\n  <<: *a\n  b: 3\ne: {<<: *d, c: 4}")
    assert read_yaml(tmp_path / "merged.yaml")["e"] == {"b": 3, "c": 4}
