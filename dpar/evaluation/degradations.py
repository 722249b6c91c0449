"""Real images made worse by known amounts: what a distance must order if it is to tell good samples from bad ones."""

import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from torch import Tensor

# kind -> strengths, rising: the standard deviation of a blur in 28ths of the side and of noise in shares of the range
# of bytes, the share of the classes that is missing, the share of the tokens that is replaced by others.
STRENGTHS: dict[str, tuple[float, ...]] = {
    "blur": (0.4, 0.6, 0.8, 1.2),
    "noise": (0.02, 0.04, 0.08, 0.16),
    "missing classes": (0.1, 0.2, 0.4, 0.6),
    "replaced tokens": (0.01, 0.03, 0.1, 0.3),
}


def blurred(images: UInt8[Tensor, "N 3 R R"], strength: float) -> UInt8[Tensor, "N 3 R R"]:
    """Images under a Gaussian of `strength` x R / 28 pixels, beyond whose borders their colour goes on."""
    sigma = strength * images.shape[-1] / 28
    reach = max(1, round(3 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma).square())
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    found = F.pad(images.float(), (reach,) * 4, mode="replicate")
    found = F.conv2d(F.conv2d(found, kernel, groups=3), kernel.transpose(2, 3), groups=3)
    return found.round().clamp(0, 255).byte()


def noisy(images: UInt8[Tensor, "N 3 R R"], strength: float, generator: torch.Generator) -> UInt8[Tensor, "N 3 R R"]:
    """Images plus grey Gaussian noise of `strength` x 255."""
    noise = torch.randn(len(images), 1, *images.shape[2:], generator=generator)
    return (images + 255 * strength * noise).round().clamp(0, 255).byte()


def rows_without_classes(
    labels: Int[Tensor, "N"], strength: float, count: int, generator: torch.Generator
) -> Int[Tensor, "n"]:
    """At most `count` rows of the classes that are left when a share `strength` of them, to the nearest, is gone."""
    classes = labels.unique()
    gone = classes[torch.randperm(len(classes), generator=generator)[: round(strength * len(classes))]]
    left = (~torch.isin(labels, gone)).nonzero()[:, 0]
    return left[torch.randperm(len(left), generator=generator)[:count]]


def fewest_rows(labels: Int[Tensor, "N"], strength: float) -> int:
    """The fewest rows that are left, whichever share `strength` of the classes, to the nearest, is gone."""
    counts = labels.unique(return_counts=True)[1].sort().values
    return int(counts[: len(counts) - round(strength * len(counts))].sum())


def replaced(
    tokens: Int[Tensor, "*grid"], strength: float, vocab_size: int, generator: torch.Generator
) -> Int[Tensor, "*grid"]:
    """Tokens of which a share `strength`, drawn at random, is replaced by others, all equally likely."""
    chosen = torch.rand(tokens.shape, generator=generator) < strength
    shift = torch.randint(1, vocab_size, tokens.shape, generator=generator)
    return torch.where(chosen, (tokens + shift) % vocab_size, tokens)
