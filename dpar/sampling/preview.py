"""Pictures from a network in training, always of the same classes and noise: checkpoints can be compared."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dpar.config import Patchify, Sampling
from dpar.device import default_device
from dpar.model.dpar import DPAR
from dpar.model.llamagen import LlamaGen
from dpar.sampling.memory import in_pieces
from dpar.sampling.networks import PRECISIONS, Networks
from dpar.sampling.noise import image_seed
from dpar.sampling.picture import contact_sheet
from dpar.weights import load_model

CLASSES, DRAWS = 8, 2  # columns and rows of the picture


def previewer(
    tokenizer: Path,
    entropy_model: Path | None,
    *,
    patchify: Patchify | None,
    threshold: float | None,
    sampling: Sampling,
    seed: int,
) -> Callable[[DPAR | LlamaGen], bytes]:
    """What makes a PNG of images that a network draws now: a column a class, a row a seed.

    Args:
        tokenizer: folder.
        entropy_model: folder, or None where no patch depends on an entropy.
        patchify: of training; None for a network without patches.
        threshold: E_Th in nats, where patches depend on entropies.
        sampling: how images of this experiment are drawn.
        seed: of the noise.

    Raises:
        InputError: a folder holds another kind of network, or a damaged one.
    """
    device = default_device()
    decoder = load_model(tokenizer, "tokenizer", device)
    gate = load_model(entropy_model, "llamagen", device) if entropy_model else None
    seeds = np.array([image_seed(seed, image) for image in range(CLASSES * DRAWS)])

    def preview(model: DPAR | LlamaGen) -> bytes:
        """Raises InputError if not even one image fits beside what is trained."""
        network = model.to(device, PRECISIONS[sampling.precision]).eval()
        networks = Networks(network, gate, decoder, provenance={}, digests={})
        side = network.config.grid[0] * decoder.config.downsample
        labels = np.tile(np.linspace(0, network.null_label - 1, CLASSES).round().astype(int), DRAWS)

        def draw(first: int, last: int) -> Any:
            how = {"patchify": patchify, "threshold": threshold, **sampling.draw}
            return networks.pixels(networks.draw(labels[first:last], seeds[first:last], **how).tokens, side)

        pictures = np.concatenate(list(in_pieces(draw, 0, len(labels), sampling.batch_size)))
        return contact_sheet(np.split(pictures, DRAWS))

    return preview
