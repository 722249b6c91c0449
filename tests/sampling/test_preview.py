"""What a checkpoint's picture shows: the images that the sampler draws for these classes and seeds."""

import numpy as np
import pytest
from PIL import Image

from dpar.config import load_experiment
from dpar.device import default_device
from dpar.sampling.networks import load_networks
from dpar.sampling.noise import image_seed
from dpar.sampling.preview import previewer
from dpar.weights import load_model
from tests.stages.sampled import THRESHOLD, write_results


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return write_results(tmp_path_factory.mktemp("results"))


@pytest.mark.parametrize("kind", ["dpar", "llamagen"])
def test_the_picture_is_what_the_sampler_draws(results, tmp_path, kind):
    experiment = load_experiment(results / "experiment.json")
    folder, gate = results / "models" / kind / "step1", results / "entropy_model" if kind == "dpar" else None
    patches = {"patchify": experiment.patchify, "threshold": THRESHOLD} if kind == "dpar" else {}
    how = {"patchify": None, "threshold": None} | patches
    preview = previewer(results / "tokenizer", gate, **how, sampling=experiment.sampling, seed=7)
    (tmp_path / "picture.png").write_bytes(preview(load_model(folder, kind)))
    picture = np.asarray(Image.open(tmp_path / "picture.png"))
    assert preview(load_model(folder, kind)) == (tmp_path / "picture.png").read_bytes()

    networks = load_networks(folder, gate, results / "tokenizer", precision="float32", device=default_device())
    labels = np.array([0, 0, 1, 1, 1, 1, 2, 2] * 2)
    seeds = np.array([image_seed(7, image) for image in range(16)])
    drawn = networks.pixels(networks.draw(labels, seeds, **how, **experiment.sampling.draw).tokens, 8)
    for image, expected in enumerate(drawn):
        top, left = image // 8 * 10, image % 8 * 10
        assert np.array_equal(picture[top : top + 8, left : left + 8], expected)
