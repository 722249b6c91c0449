"""The one way from labels to images: the same in any batches, from any image on, and nothing drawn is lost."""

import numpy as np
import pytest
import torch

from dpar.patches.rule import PatchRule
from dpar.sampling.drawing import ImageSampler
from dpar.sampling.guidance import DrawSettings
from dpar.sampling.networks import load_networks
from dpar.sampling.request import Request
from dpar.sampling.sampler import sample
from dpar.weights import model_config
from tests.stages.sampled import write_results

REQUEST = Request.of(np.arange(7) % 3, seed=5)


@pytest.fixture(scope="module")
def sampler(tmp_path_factory):
    results = write_results(tmp_path_factory.mktemp("results"))
    folder = results / "models" / "dpar" / "step1"
    networks = load_networks(
        folder, results / "entropy_model", results / "tokenizer", precision="float32", device=torch.device("cpu")
    )
    networks.model.double()
    networks.entropy_model.double()
    return ImageSampler(networks, PatchRule.of_model(model_config(folder)), DrawSettings(2.0, top_k=30), batch_size=3)


def tokens_of(sampler):
    """The tokens of the whole request, drawn at once."""
    labels, seeds = map(torch.from_numpy, (REQUEST.labels, REQUEST.seeds))
    networks = sampler.networks
    settings = {"rule": sampler.rule, "settings": sampler.settings}
    return sample(networks.model, networks.entropy_model, labels=labels, seeds=seeds, **settings)


def test_images_are_those_of_the_tokens_that_the_sampler_draws(sampler):
    found, expected = sampler.images(REQUEST), tokens_of(sampler)
    assert found.patches.tolist() == expected.starts.sum(1).tolist()
    images = np.concatenate([sampler.networks.pixels(some, 8) for some in expected.tokens.split(3)])
    assert np.array_equal(found.images, images)
    assert (found.start, found.stop, sampler.side) == (0, 7, 8)


def test_batches_go_on_from_any_image(sampler):
    whole = sampler.images(REQUEST)
    batches = list(sampler.batches(REQUEST, done=2))
    assert [(batch.start, batch.stop) for batch in batches] == [(2, 5), (5, 7)]
    assert np.concatenate([batch.patches for batch in batches]).tolist() == whole.patches[2:].tolist()
    assert list(sampler.batches(REQUEST, done=7)) == []


def test_a_batch_that_was_drawn_is_kept_whatever_ends_the_next(sampler, monkeypatch):
    draw, kept = ImageSampler.draw, []

    def die_third(self, request):
        if request.images[0] == 6:
            raise KeyboardInterrupt
        return draw(self, request)

    monkeypatch.setattr(ImageSampler, "draw", die_third)
    with pytest.raises(KeyboardInterrupt):
        list(sampler.batches(REQUEST, keep=kept.append))
    assert [batch.stop for batch in kept] == [3, 6]


def test_an_error_on_the_way_to_pixels_or_the_disk_is_raised(sampler):
    def full(batch):
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        list(sampler.batches(REQUEST, keep=full))
