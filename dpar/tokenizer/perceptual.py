"""LPIPS: the distance between the VGG-16 features of two images, weighted channel by channel."""

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dpar.model.official import fill, read_official

# channels of VGG-16's convolutions, poolings (M); the layers (each after a ReLU) that are compared, and their channels
LAYERS = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)
COMPARED = {3: 64, 8: 128, 15: 256, 22: 512, 29: 512}


class LPIPS(nn.Module):
    """VGG-16 up to its last convolution and a weight for each channel of five of its layers; nothing is trained."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in LAYERS:
            if isinstance(width, int):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.lins = nn.ParameterList(torch.zeros(1, width, 1, 1) for width in COMPARED.values())
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1), persistent=False)
        self.requires_grad_(False)

    def compared(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B C h w"]]:
        """The features of five layers, each position's vector divided by its length."""
        x = (images - self.shift) / self.scale
        found = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in COMPARED:
                found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    def forward(self, images: Float[Tensor, "B 3 H W"], others: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
        """The distance of each image to its other, both in [-1, 1] and at least 16 x 16 pixels."""
        features = zip(self.lins, self.compared(images), self.compared(others), strict=True)
        distances = [F.conv2d((a - b).square(), weight).mean((1, 2, 3)) for weight, a, b in features]
        return torch.stack(distances).sum(0)


def load_lpips(path: str | Path) -> LPIPS:
    """LPIPS with the weights in a user's file.

    The file is the state dict of `lpips.LPIPS(net="vgg")` of the package `lpips`, as LlamaGen uses it; VGG's layers may
    also be named as torchvision names them.

    Raises:
        InputError: the file is none, or tensors are missing, left over or of another shape.
    """
    tensors = {}
    for name, tensor in read_official(path).items():
        if re.match(r"scaling_layer\.|classifier\.|lins\.", name):  # constants, unused, copies of lin0 ... lin4
            continue
        name = re.sub(r"^net\.slice\d\.", "features.", name)
        name = re.sub(r"^lin(\d)\.model\.1\.weight$", r"lins.\1", name)
        tensors[name] = tensor
    network = LPIPS()
    fill(network, tensors, path)
    return network.eval()
