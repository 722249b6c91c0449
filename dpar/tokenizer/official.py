"""LlamaGen's published tokenizers, `vq_ds16_c2i.pt` and `vq_ds8_c2i.pt`, as ours."""

from pathlib import Path

from dpar.experiment.settings import Autoencoder
from dpar.model.official import LAYOUTS, fill, read_official
from dpar.tokenizer.autoencoder import VQAutoencoder

# LlamaGen measures a tokenizer by its moving average, where the file of a training has one
AVERAGED = ("ema", *LAYOUTS)


def import_tokenizer(path: str | Path, config: Autoencoder, sha256: str | None = None) -> VQAutoencoder:
    """An autoencoder of these sizes with the weights of a published file, in eval mode.

    Args:
        path: the file; of a moving average (`ema`) and the weights themselves, the average is taken.
        config: `dpar.experiment.settings.TOKENIZERS` has LlamaGen's.

    Raises:
        InputError: the file is a web page, a git-lfs pointer, cut off, of another format or digest, of other sizes,
            or has numbers that are not finite.
    """
    model = VQAutoencoder(config)
    given = read_official(path, sha256, AVERAGED)
    given.pop("quantize.codebook_used", None)  # a log of the codes used in training, no weight
    fill(model, given, path)
    return model.eval()
