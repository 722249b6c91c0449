"""LlamaGen's published tokenizers, `vq_ds16_c2i.pt` and `vq_ds8_c2i.pt`, as ours."""

from pathlib import Path

from dpar.config import Autoencoder
from dpar.model.official import load_official
from dpar.tokenizer.autoencoder import VQAutoencoder

# a log of the codes used in training, no weight
IGNORED = ("quantize.codebook_used",)


def import_tokenizer(path: str | Path, config: Autoencoder, sha256: str | None = None) -> VQAutoencoder:
    """An autoencoder of these sizes with the weights of a published file, in eval mode.

    Args:
        path: the file.
        config: `dpar.config.TOKENIZERS` has LlamaGen's.
        sha256: what the file's bytes must have; None = whatever they have.

    Raises:
        InputError: the file is a web page, a git-lfs pointer, cut off, of another format or digest, or of other sizes.
    """
    model = VQAutoencoder(config)
    load_official(path, model, ignored=IGNORED, sha256=sha256)
    return model.eval()
