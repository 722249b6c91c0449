"""PatchGAN: a convolutional critic that calls each overlapping patch of an image real or reconstructed."""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn


class PatchGAN(nn.Module):
    """A logit for each 70 x 70 patch: 4 x 4 convolutions of 64, 128, 256, 512 channels, the first three of stride 2."""

    WIDTHS = (64, 128, 256, 512)
    STRIDES = (2, 2, 2, 1)

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, self.WIDTHS[0], 4, self.STRIDES[0], padding=1), nn.LeakyReLU(0.2)]
        for (width_in, width), stride in zip(pairwise(self.WIDTHS), self.STRIDES[1:], strict=True):
            layers += [
                nn.Conv2d(width_in, width, 4, stride, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.LeakyReLU(0.2),
            ]
        self.main = nn.Sequential(*layers, nn.Conv2d(self.WIDTHS[-1], 1, 4, padding=1))
        for module in self.main:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1 h w"]:
        """Logits, positive for real; images in [-1, 1] of at least 24 x 24 pixels."""
        return self.main(images)
