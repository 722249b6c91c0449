"""Fidelity of reconstructions, and use of the codebook."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

# The PSNR given for equal images
MOST_DECIBELS = 100.0


def psnr(originals: UInt8[Tensor, "B 3 H W"], others: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """Peak signal-to-noise ratio of each image in dB, at most 100."""
    mse = (originals.float() - others.float()).square().mean((1, 2, 3)) / 255**2
    return -10 * mse.clamp_min(10 ** (-MOST_DECIBELS / 10)).log10()


def ssim(originals: UInt8[Tensor, "B 3 H W"], others: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """Structural similarity of each image (Wang et al. 2004), mean over colours and over 11 x 11 windows inside it.

    Windows are Gaussian (1.5 pixels), K1 = 0.01, K2 = 0.03, range 255; at least 11 x 11 pixels.
    """
    distance = torch.arange(-5.0, 6.0, device=originals.device, dtype=torch.float64)
    weights = torch.exp(-distance.square() / (2 * 1.5**2))
    weights = weights / weights.sum()

    def blurred(x: Tensor) -> Tensor:
        rows = F.conv2d(x.flatten(0, 1).unsqueeze(1), weights.view(1, 1, -1, 1))
        return F.conv2d(rows, weights.view(1, 1, 1, -1)).view(*x.shape[:2], -1)

    x, y = originals.double(), others.double()
    mean_x, mean_y = blurred(x), blurred(y)
    variance_x, variance_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).mean((1, 2))


def codebook_use(counts: Int[Tensor, " V"]) -> float:
    """Share of the codes that occur at all."""
    return (counts > 0).double().mean().item()


def perplexity(counts: Int[Tensor, " V"]) -> float:
    """Codes that would be in use if all were used equally often: exp of the entropy of their frequencies."""
    return torch.special.entr(counts.double() / counts.sum()).sum().exp().item()
