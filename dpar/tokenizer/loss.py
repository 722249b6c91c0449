"""Losses of the tokenizer's training: pixels, VGG features, codebook and adversarial (VQGAN's loss).

Deviation: LPIPS needs VGG weights that are not ours to ship; without them a tokenizer is trained without it.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dpar.experiment.settings import TokenizerTraining
from dpar.tokenizer.autoencoder import Autoencoded
from dpar.tokenizer.discriminator import PatchGAN
from dpar.tokenizer.perceptual import LPIPS


@dataclass(frozen=True)
class AutoencoderLoss:
    """The weighted sum of all terms, and unweighted those of pixels and networks; one that is not used is None."""

    total: Float[Tensor, ""]
    reconstruction: Float[Tensor, ""]
    perceptual: Float[Tensor, ""] | None
    adversarial: Float[Tensor, ""] | None


def autoencoder_loss(
    images: Float[Tensor, "B 3 H W"],
    output: Autoencoded,
    training: TokenizerTraining,
    perceptual: LPIPS | None,
    discriminator: PatchGAN | None,
) -> AutoencoderLoss:
    """MSE + LPIPS + codebook + commitment + hinge loss of the critic, with the weights of `training`.

    Args:
        images: the originals in [-1, 1].
        perceptual: None leaves the term out.
        discriminator: None, before its first step, leaves the term out.
    """
    reconstruction = F.mse_loss(output.images, images)
    total = (
        reconstruction
        + training.codebook_weight * output.codebook_loss
        + training.commitment_weight * output.commitment_loss
    )
    distance = opinion = None
    if perceptual is not None:
        distance = perceptual(images, output.images).mean()
        total = total + training.perceptual_weight * distance
    if discriminator is not None:
        opinion = -discriminator(output.images).mean()
        total = total + training.adversarial_weight * opinion
    return AutoencoderLoss(total, reconstruction, distance, opinion)


def discriminator_loss(
    real: Float[Tensor, "B 1 h w"], reconstructed: Float[Tensor, "B 1 h w"], training: TokenizerTraining
) -> Float[Tensor, ""]:
    """The critic's hinge loss on its logits, with its weight."""
    hinge = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + reconstructed).mean())
    return training.adversarial_weight * hinge
