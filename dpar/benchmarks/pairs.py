"""The pairs of networks whose sampling is timed: sizes, and untrained networks of them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dpar.benchmarks.train import PAPER_P_AVG
from dpar.experiment.settings import Autoencoder, Transformer
from dpar.model.dpar import DPAR, DPARConfig
from dpar.model.entropy import token_entropies
from dpar.model.llamagen import LlamaGen, LlamaGenConfig
from dpar.model.variants import model_config
from dpar.paper import DOWNSAMPLE, NUM_CLASSES, PAPER_MAX_LENGTH, VOCAB_SIZE
from dpar.patches.calibration import calibrate
from dpar.patches.rule import PatchRule
from dpar.sampling.networks import Networks
from dpar.sampling.noise import image_seed
from dpar.tokenizer.autoencoder import VQAutoencoder


@dataclass(frozen=True)
class Sizes:
    """The networks that are timed together, in which batches of images, how often.

    Algorithm 2 as written is timed in the batches `literal`, in pieces; where all is small enough (`whole`) also from
    its first token to its last, and images are drawn again in other batches to be compared. If `compiled`, the sampler
    is timed once more in compiled code, but for single images, for which all would be compiled once more.
    """

    dpar: DPARConfig
    entropy_model: LlamaGenConfig
    llamagen: LlamaGenConfig
    tokenizer: Autoencoder
    p_avg: float
    batches: tuple[int, ...]
    literal: tuple[int, ...]
    turns: int
    whole: bool
    compiled: bool


_DEMO = {"vocab_size": 256, "grid": (8, 8), "width": 96, "heads": 3}
DEMO = Sizes(
    DPARConfig(**_DEMO, num_classes=8, layers=2, decoder_layers=1),
    LlamaGenConfig(**_DEMO, layers=3),
    LlamaGenConfig(**_DEMO, num_classes=8, layers=4),
    Autoencoder.model_validate(
        {"vocab_size": 256, "channels": 32, "pixel_shuffle": 4, "multipliers": (1, 2), "residual_blocks": 1}
        | {"z_channels": 64, "groups": 1, "attention": False}
    ),
    p_avg=PAPER_P_AVG[256],
    batches=(1, 16, 64, 256),
    literal=(16, 64),
    turns=3,
    whole=True,
    compiled=True,
)  # fmt: skip


def table1(size: str, resolution: int) -> Sizes:
    """A pair of Table 1 at `resolution` pixels, with the entropy model of the paper: an unconditional LlamaGen-B."""
    side = resolution // DOWNSAMPLE

    def config(variant: str, num_classes: int | None) -> Any:
        transformer = Transformer.model_validate({"variant": variant})
        return model_config(transformer, vocab_size=VOCAB_SIZE, grid=(side, side), num_classes=num_classes)

    return Sizes(
        config(f"DPAR-{size}", NUM_CLASSES),
        config("LlamaGen-B", None),
        config(f"LlamaGen-{size}", NUM_CLASSES),
        Autoencoder.model_validate({}),
        p_avg=PAPER_P_AVG.get(resolution, PAPER_P_AVG[256]),
        batches=(16, 48),
        literal=(16,),
        turns=1,
        whole=False,
        compiled=False,
    )


def untrained(sizes: Sizes, device: torch.device) -> tuple[Networks, PatchRule]:
    """Networks whose predictions vary, and the rule that gives patches of about `sizes.p_avg` tokens."""
    torch.manual_seed(0)
    with device:  # a GPU makes the weights of an XL in no time, a CPU in some ten seconds
        model, entropy_model = random_weights(DPAR(sizes.dpar)), random_weights(LlamaGen(sizes.entropy_model))
    tokens = torch.randint(0, sizes.dpar.vocab_size, (16, sizes.dpar.tokens), device=device)
    with torch.inference_mode():
        entropy = token_entropies(entropy_model, tokens, "unconditional").cpu()
    width = sizes.dpar.grid[1]
    threshold = calibrate(entropy, sizes.p_avg, max_length=PAPER_MAX_LENGTH, grid_width=width)
    rule = PatchRule(width, threshold, PAPER_MAX_LENGTH)
    tokenizer = VQAutoencoder(sizes.tokenizer).to(device).eval()
    return Networks(model, entropy_model, tokenizer, {}, {}), rule


def random_weights(model: nn.Module) -> Any:
    """A new model with a head that is not zero, in eval mode."""
    head = model.decoder.output if isinstance(model, DPAR) else model.output
    assert isinstance(head, nn.Linear)
    nn.init.normal_(head.weight, std=2 * head.in_features**-0.5)
    return model.eval()


def request_of(batch: int, sizes: Sizes, device: torch.device) -> dict[str, Tensor]:
    """Labels and seeds of the first `batch` images."""
    return {
        "labels": torch.arange(batch, device=device) % sizes.dpar.num_classes,
        "seeds": torch.tensor([image_seed(0, i) for i in range(batch)], device=device),
    }
