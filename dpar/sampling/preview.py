"""Samples of a network in training, with fixed classes and noise, so that checkpoints can be compared."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from dpar.device import default_device
from dpar.experiment.settings import EntropyPrecision, Sampling
from dpar.model.dpar import DPAR
from dpar.model.entropy import entropy_weights
from dpar.model.llamagen import LlamaGen
from dpar.patches.rule import PatchRule
from dpar.sampling.drawing import ImageSampler
from dpar.sampling.guidance import DrawSettings
from dpar.sampling.networks import PRECISIONS, Networks
from dpar.sampling.picture import contact_sheet
from dpar.sampling.request import Request
from dpar.weights import load_model

CLASSES, DRAWS = 8, 2  # columns and rows of the picture


def previewer(
    tokenizer: Path,
    entropy_model: Path | None,
    *,
    rule: PatchRule | None,
    sampling: Sampling,
    seed: int,
    entropy_precision: EntropyPrecision = "float32",
) -> Callable[[DPAR | LlamaGen], bytes]:
    """A function that makes a PNG of images that a network draws now: a column per class, a row per seed.

    Args:
        entropy_model: folder, or None where no patch depends on an entropy.
        rule: where patches begin in training; None for a network without patches.
        entropy_precision: with which the training's codes were scored.

    Raises:
        InputError: a folder holds another kind of network, or a damaged one.
    """
    device = default_device()
    decoder = load_model(tokenizer, "tokenizer", device)
    boundary_network = None
    if entropy_model is not None:
        boundary_network = entropy_weights(load_model(entropy_model, "llamagen", device), entropy_precision)

    def preview(model: DPAR | LlamaGen) -> bytes:
        """Raises InputError if not even one image fits next to what is trained."""
        network = model.to(device, PRECISIONS[sampling.precision]).eval()
        networks = Networks(network, boundary_network, decoder, {}, {}, entropy_precision)
        labels = np.tile(np.linspace(0, network.null_label - 1, CLASSES).round().astype(int), DRAWS)
        sampler = ImageSampler(networks, rule, DrawSettings(**sampling.draw), sampling.batch_size)
        return contact_sheet(np.split(sampler.images(Request.of(labels, seed)).images, DRAWS))

    return preview
