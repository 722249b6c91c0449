"""A pair of networks that is sampled from within a test."""

from dpar.benchmarks.pairs import Sizes
from dpar.experiment.settings import Autoencoder
from dpar.model.dpar import DPARConfig
from dpar.model.llamagen import LlamaGenConfig

_SIZES = {"vocab_size": 40, "grid": (4, 4), "width": 32, "heads": 2}
TINY = Sizes(
    DPARConfig(**_SIZES, num_classes=3, layers=1, decoder_layers=1),
    LlamaGenConfig(**_SIZES, layers=1),
    LlamaGenConfig(**_SIZES, num_classes=3, layers=2),
    Autoencoder(vocab_size=40, channels=8, multipliers=(1, 1), residual_blocks=1, z_channels=8, groups=1,
                code_dim=4, attention=False, pixel_shuffle=1),
    p_avg=1.81,
    batches=(2, 16),
    literal=(16,),
    turns=1,
    whole=True,
    compiled=False,
)  # fmt: skip
