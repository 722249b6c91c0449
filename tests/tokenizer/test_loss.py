import pytest
import torch
from torch import nn

from dpar.experiment.settings import TokenizerTraining
from dpar.tokenizer.autoencoder import Autoencoded
from dpar.tokenizer.discriminator import PatchGAN
from dpar.tokenizer.loss import autoencoder_loss, discriminator_loss
from dpar.tokenizer.perceptual import LPIPS


def settings(**changes) -> TokenizerTraining:
    return TokenizerTraining(**({"steps": 1, "perceptual_network": "unused.pth"} | changes))


def output(images: torch.Tensor) -> Autoencoded:
    return Autoencoded(
        images=images,
        codes=torch.zeros(len(images), 1, 1, dtype=torch.long),
        latents=torch.zeros(len(images), 4, 1, 1),
        codebook_loss=torch.tensor(0.5),
        commitment_loss=torch.tensor(0.25),
    )


class Scale(PatchGAN):
    """Stands in for a critic: half of each pixel."""

    WIDTHS = (1, 1, 1, 1)

    def forward(self, images):
        return images[:, :1] / 2


class Distance(LPIPS):
    """Stands in for LPIPS: three for every image."""

    def __init__(self):
        nn.Module.__init__(self)

    def forward(self, images, others):
        return torch.full((len(images),), 3.0)


def test_the_terms_are_weighted_as_in_the_paper():
    images, rebuilt = torch.zeros(2, 3, 8, 8), torch.full((2, 3, 8, 8), 0.5)
    loss = autoencoder_loss(images, output(rebuilt), settings(), Distance(), Scale())
    assert loss.reconstruction.item() == 0.25
    assert loss.perceptual.item() == 3
    assert loss.adversarial.item() == -0.25
    assert loss.total.item() == pytest.approx(0.25 + 3 + 0.5 + 0.25 * 0.25 - 0.5 * 0.25)


def test_without_networks_pixels_and_codebook_are_left():
    images, rebuilt = torch.zeros(2, 3, 8, 8), torch.full((2, 3, 8, 8), 0.5)
    training = settings(perceptual_weight=0, adversarial_weight=0, codebook_weight=2.0, commitment_weight=0.1)
    loss = autoencoder_loss(images, output(rebuilt), training, None, None)
    assert loss.perceptual is None
    assert loss.adversarial is None
    assert loss.total.item() == pytest.approx(0.25 + 2 * 0.5 + 0.1 * 0.25)


def test_the_critic_is_trained_with_hinges():
    real, rebuilt = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    expected = 0.5 * 0.5 * ((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3)
    shape = (3, 1, 1, 1)
    assert discriminator_loss(real.view(shape), rebuilt.view(shape), settings()).item() == pytest.approx(expected)
