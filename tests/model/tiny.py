"""Networks small enough for the literal oracle, with weights far from zero."""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dpar.model.dpar import DPAR
from dpar.model.entropy_regressor import EntropyRegressor
from dpar.model.llamagen import LlamaGen

VOCAB, CLASSES, HEADS = 13, 3, 2
SIZES: dict[str, Any] = {"vocab_size": VOCAB, "width": 32, "heads": HEADS, "layers": 1}
N = TypeVar("N", bound=nn.Module)


def randomised(network: N, seed: int = 0) -> N:
    """The network in eval mode with every weight drawn anew: zeros and ones would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.3, generator=generator)
    return network.eval()


def tiny_dpar(grid: tuple[int, int] = (3, 4), **sizes: Any) -> DPAR:
    """A random DPAR in eval mode."""
    config = SIZES | {"num_classes": CLASSES, "decoder_layers": 1} | sizes
    return randomised(DPAR(DPAR.Config(grid=grid, **config)))


def tiny_llamagen(grid: tuple[int, int] = (3, 4), num_classes: int | None = CLASSES, **sizes: Any) -> LlamaGen:
    """A random LlamaGen in eval mode."""
    return randomised(LlamaGen(LlamaGen.Config(grid=grid, num_classes=num_classes, **(SIZES | sizes))))


def tiny_regressor(grid: tuple[int, int] = (3, 4), **sizes: Any) -> EntropyRegressor:
    """A random distilled gate in eval mode."""
    return randomised(EntropyRegressor(EntropyRegressor.Config(grid=grid, **(SIZES | sizes))))


def tiny_batch(batch: int, grid: tuple[int, int] = (3, 4), seed: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens of some images and their labels, of which the first is the null class."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCAB, (batch, grid[0] * grid[1]), generator=generator)
    return tokens, CLASSES - torch.arange(batch) % (CLASSES + 1)


def patches(*lengths: int) -> Tensor:
    """The starts of one image whose patches have these lengths."""
    starts = torch.zeros(sum(lengths), dtype=torch.bool)
    starts[torch.tensor([0, *lengths[:-1]]).cumsum(0)] = True
    return starts
