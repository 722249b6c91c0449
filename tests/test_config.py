"""Experiments: what is refused, and that each message names the key."""

from pathlib import Path

import pytest
import yaml

from dpar.config import Tokenizer, load_experiment, parse_experiment
from dpar.errors import InputError

CONFIG = Path(__file__).resolve().parents[1] / "config"
SHIPPED = ("demo", "fashion28", "photos64", "imagenet256", "imagenet384")


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
        ({"gates": {"g": {"kind": "distilled"}}}, "gates.g: Value error, give exactly one of `weights`"),
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
