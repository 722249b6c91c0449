"""What a checkpoint's picture shows: the images that the sampler draws for these classes and seeds."""

import numpy as np
import pytest
import torch
from PIL import Image

from dpar.device import default_device
from dpar.experiment.loading import load_experiment
from dpar.patches.rule import PatchRule
from dpar.sampling.guidance import DrawSettings
from dpar.sampling.networks import load_networks
from dpar.sampling.noise import image_seed
from dpar.sampling.preview import previewer
from dpar.sampling.sampler import sample
from dpar.weights import load_model
from tests.stages.sampled import THRESHOLD, write_results


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return write_results(tmp_path_factory.mktemp("results"))


@pytest.mark.parametrize("kind", ["dpar", "llamagen"])
def test_the_picture_is_what_the_sampler_draws(results, tmp_path, kind):
    experiment = load_experiment(results / "experiment.json")
    folder, gate = results / "models" / kind / "step1", results / "entropy_model" if kind == "dpar" else None
    rule = PatchRule.of(experiment.patchify, THRESHOLD, 4) if kind == "dpar" else None
    preview = previewer(results / "tokenizer", gate, rule=rule, sampling=experiment.sampling, seed=7)
    (tmp_path / "picture.png").write_bytes(preview(load_model(folder, kind)))
    picture = np.asarray(Image.open(tmp_path / "picture.png"))
    assert preview(load_model(folder, kind)) == (tmp_path / "picture.png").read_bytes()

    networks = load_networks(folder, gate, results / "tokenizer", precision="float32", device=default_device())
    labels = np.array([0, 0, 1, 1, 1, 1, 2, 2] * 2)
    seeds = np.array([image_seed(7, image) for image in range(16)])
    drawn = sample(
        networks.model,
        networks.entropy_model,
        labels=torch.from_numpy(labels),
        seeds=torch.from_numpy(seeds),
        rule=rule,
        settings=DrawSettings(**experiment.sampling.draw),
    )
    for image, expected in enumerate(networks.pixels(drawn.tokens, 8)):
        top, left = image // 8 * 10, image % 8 * 10
        assert np.array_equal(picture[top : top + 8, left : left + 8], expected)
