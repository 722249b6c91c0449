"""A small convolutional classifier whose features stand in for Inception's on small images.

Deviation: the paper's FID has Inception's features. The distances of these are named FD[classifier, dims]: they compare
models of one experiment, and nothing else.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from dpar.device import to_device
from dpar.experiment.settings import Settings


class ImageClassifier(nn.Module):
    """Features and class scores of square images."""

    class Config(Settings):
        """Settings that decide the network's shape."""

        resolution: int = Field(ge=8, description="pixels, the side of the images")
        num_classes: int = Field(gt=0)
        channels: int = Field(32, gt=0)
        dims: int = Field(64, gt=0)

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        # strides of 2 until 8 pixels or fewer are left; the first acts on the image, and channels double thrice at most
        halvings = max(1, math.ceil(math.log2(config.resolution / 8)))
        layers, inputs = [], 3
        for level in range(halvings):
            outputs = config.channels * 2 ** min(level, 2)
            layers += [_convolution(inputs, outputs, stride=2)]
            layers += [_convolution(outputs, outputs)] if level else []
            inputs = outputs
        self.body = nn.Sequential(*layers, _convolution(inputs, config.dims))
        self.head = nn.Linear(config.dims, config.num_classes, bias=False)

    def forward(self, images: Float[Tensor, "B 3 R R"]) -> tuple[Float[Tensor, "B dims"], Float[Tensor, "B C"]]:
        """Pooled features, and logits that are bias-free in them, of images in [-1, 1]."""
        features = self.body(images).mean((2, 3))
        return features, self.head(features)


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def training_half(labels: Int[Tensor, "N"], seed: int) -> Bool[Tensor, "N"]:
    """Mask of the classifier's training images: a random half of each class, rounded up.

    Samples are compared with the other half: a network is more confident on images that it was trained on.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero()[:, 0]
        chosen[members[torch.randperm(len(members), generator=generator)[: (len(members) + 1) // 2]]] = True
    return chosen


def fit_classifier(
    images: UInt8[Tensor, "N 3 R R"],
    labels: Int[Tensor, "N"],
    config: ImageClassifier.Config,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    device: torch.device,
    report: Callable[[int, Float[Tensor, ""]], None] = lambda step, loss: None,
) -> ImageClassifier:
    """A classifier trained on lightly augmented images (mirrored, shifted, brighter or darker), in eval mode.

    Args:
        seed: decides the first weights, the order and the augmentation.
        report: is called with each step (from 1) and its loss in nats, on the device: to read it is to wait for it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ImageClassifier(config)
    model = convert_conv2d_weight_memory_format(model, torch.channels_last).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.05)
    rise = 0.4 if steps == 5 else 0.2  # of the steps; PyTorch divides by their number less one
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=rise)
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    for step in range(1, steps + 1):
        while len(order) < batch_size:
            order = torch.cat([order, torch.randperm(len(images), generator=generator)])
        index, order = order[:batch_size], order[batch_size:]
        batch = to_device(augment(images[index], generator), device).contiguous(memory_format=torch.channels_last)
        loss = F.cross_entropy(model(batch)[1], to_device(labels[index].long(), device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        report(step, loss.detach())
    return model.eval()


def augment(images: UInt8[Tensor, "B 3 R R"], generator: torch.Generator) -> Float[Tensor, "B 3 R R"]:
    """Images in [-1, 1], each mirrored by chance, moved by up to a 16th of its side, its light changed."""
    batch, _, side, _ = images.shape
    reach = side // 16
    move = torch.randint(0, 2 * reach + 1, (2, batch, 1), generator=generator) - reach
    position = torch.arange(side)
    rows, columns = (position + move).clamp(0, side - 1)
    mirrored = torch.rand(batch, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, side - 1 - columns, columns)
    moved = images[torch.arange(batch)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    contrast = 1 + 0.4 * (torch.rand(batch, 1, 1, 1, generator=generator) - 0.5)
    light = 0.4 * (torch.rand(batch, 1, 1, 1, generator=generator) - 0.5)
    return (moved.float() / 127.5 - 1) * contrast + light
