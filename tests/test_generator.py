"""Images from Python are those of `dpar sample`."""

import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import dpar
from dpar.commands import sample
from dpar.errors import InputError
from dpar.sampling.drawing import ImageSampler
from dpar.sampling.guidance import DrawSettings
from dpar.sampling.request import Request
from tests.stages.sampled import write_results


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return write_results(tmp_path_factory.mktemp("results"))


@pytest.mark.parametrize("model", ["dpar", "llamagen"])
def test_the_images_are_those_of_the_command(results, tmp_path, model):
    folder = results / "models" / model / "step1"
    out = tmp_path / "grid.png"
    sample.main(["--checkpoint", str(folder), "--labels", "2", "--n", "3", "--cfg", "1.5", "--out", str(out)])
    expected = np.asarray(Image.open(out))
    generator = dpar.Generator.from_pretrained(folder)
    images = generator([2, 2, 2], cfg_scale=1.5)
    assert generator.side == 8
    assert images.shape == (3, 8, 8, 3)
    for i, image in enumerate(images):
        assert np.array_equal(expected[:, i * 10 : i * 10 + 8], image)
    assert not np.array_equal(generator([2, 2, 2], cfg_scale=1.5, seed=1), images)


def test_beginnings_go_with_their_images_whatever_the_batch(results):
    generator = dpar.Generator.from_pretrained(results / "models/dpar/step1")
    prefix = torch.tensor([[0, 1], [2, 3], [4, 5]])
    whole = generator([0, 1, 2], prefix=prefix)
    sampler = ImageSampler(generator.networks, generator.rule, DrawSettings(2.0), batch_size=2)
    assert np.array_equal(sampler.images(Request.of(np.array([0, 1, 2]), 0, prefix)).images, whole)
    assert not np.array_equal(generator([0, 1, 2], prefix=prefix.flip(0)), whole)


def test_another_rule_than_that_of_training_draws_what_the_command_draws_under_it(results, tmp_path):
    folder, out = results / "models/dpar/step1", tmp_path / "grid.png"
    generator = dpar.Generator.from_pretrained(folder)
    rule = replace(generator.rule, threshold=float("inf"), max_length=2)
    flags = ["--threshold", "inf", "--max-length", "2", "--cfg", "1.5"]
    sample.main(["--checkpoint", str(folder), "--labels", "2", "--n", "3", *flags, "--out", str(out)])
    images = generator([2, 2, 2], cfg_scale=1.5, rule=rule)
    expected = np.asarray(Image.open(out))
    assert all(np.array_equal(expected[:, i * 10 : i * 10 + 8], image) for i, image in enumerate(images))
    assert not np.array_equal(generator([2, 2, 2], cfg_scale=1.5), images), "the rule of training draws others"


def test_rules_of_other_models_are_refused(results):
    generator = dpar.Generator.from_pretrained(results / "models/dpar/step1")
    with pytest.raises(InputError, match="rows of 99 tokens, this model's images have rows of"):
        generator([0], rule=replace(generator.rule, grid_width=99))
    with pytest.raises(InputError, match="a LlamaGen, which has no patches"):
        dpar.Generator.from_pretrained(results / "models/llamagen/step1")([0], rule=generator.rule)


def test_requests_that_cannot_be_drawn(results):
    generator = dpar.Generator.from_pretrained(results / "models/dpar/step1")
    assert generator([]).shape == (0, 8, 8, 3)
    for labels in ([10**30], [[0], [1, 2]], [0.7], [None]):
        with pytest.raises(InputError, match="labels are names or whole numbers, one per image"):
            generator(labels)
    with pytest.raises(InputError, match=r"one per image, not '10' \(one text; put it into a list\)"):
        generator("10")  # each of its letters is a label too
    for seed in (0.0, "0", None):  # 0.0 would be a seed of its own, of other images than those of 0
        with pytest.raises(InputError, match=rf"^the seed is {seed!r}; expected a whole number"):
            generator([0], seed=seed)
    assert np.array_equal(generator([0], seed=True), generator([0], seed=np.int64(1)))
    with pytest.raises(InputError, match="temperature is 0; expected a number above 0"):
        generator([0], temperature=0)


def test_the_network_alone(results):
    network = dpar.DPAR.from_pretrained(results / "models/dpar/step1")
    assert (network.config.num_classes, network.training) == (3, False)
    with pytest.raises(InputError, match="holds a llamagen, expected a dpar"):
        dpar.DPAR.from_pretrained(results / "models/llamagen/step1")


def test_a_folder_without_its_other_networks_is_explained(results, tmp_path):
    shutil.copytree(results / "models/dpar/step1", tmp_path / "alone")
    with pytest.raises(InputError, match=r"no entropy_model folder in .*`dpar export` puts all networks into one"):
        dpar.Generator.from_pretrained(tmp_path / "alone")


def test_other_names_are_not_invented():
    with pytest.raises(AttributeError, match="has no attribute 'Painter'"):
        dpar.Painter  # noqa: B018
    assert "dpar" in sys.modules
