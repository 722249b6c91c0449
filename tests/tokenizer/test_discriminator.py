import torch

from dpar.tokenizer.discriminator import PatchGAN


def test_size_is_that_of_pix2pix():
    assert sum(parameter.numel() for parameter in PatchGAN().parameters()) == 2_765_633


def test_there_is_a_logit_for_each_patch():
    torch.manual_seed(0)
    critic = PatchGAN()
    assert critic(torch.rand(2, 3, 64, 96)).shape == (2, 1, 6, 10)
    assert critic(torch.rand(2, 3, 24, 24)).shape == (2, 1, 1, 1)


def test_a_logit_sees_seventy_pixels():
    torch.manual_seed(0)
    critic = PatchGAN().eval()
    images = torch.rand(1, 3, 160, 160, requires_grad=True)
    logits = critic(images)
    middle = logits.shape[-1] // 2
    (gradient,) = torch.autograd.grad(logits[0, 0, middle, middle], images)
    rows = gradient.abs().sum((0, 1, 3)).nonzero().flatten()
    assert rows[-1] - rows[0] + 1 == 70
