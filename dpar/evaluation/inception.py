"""Inception v3 of 2015-12-05, the network that FID, sFID and the Inception Score are defined by.

It differs from the usual ImageNet classifier of that name: 1008 outputs, average pools that leave padding out, a
maximum pool in the last block, and images that are resized as TensorFlow 1 did it.
"""

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dpar.errors import InputError
from dpar.files import sha256_file

SIDE = 299  # pixels of the network's input
# images at a time in either part on a CPU: larger outputs than 32 MiB are new, cold memory each time
STEM, BODY = 4, 16
SPATIAL_CHANNELS = 7  # of Mixed_6d's 1x1 branch, the features of sFID


@dataclass(frozen=True)
class WeightFile:
    """A published file of these weights."""

    name: str
    script: bool


# SHA-256 -> the file; the two state dicts of pytorch-fid and of torch-fidelity are the same bytes
KNOWN_FILES = {
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2": WeightFile(
        "pt_inception-2015-12-05-6726825d.pth (pytorch-fid) or weights-inception-2015-12-05-6726825d.pth "
        "(torch-fidelity)",
        script=False,
    ),
    "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4": WeightFile(
        "inception-2015-12-05.pt (clean-fid, StyleGAN)", script=True
    ),
}


class Activations(NamedTuple):
    """Outputs of one pass: `pool_3`, bias-free class scores, and spatial features in H, W, C order."""

    pool: Float[Tensor, "B 2048"]
    logits: Float[Tensor, "B 1008"]
    spatial: Float[Tensor, "B 2023"]


class Convolution(nn.Module):
    """A convolution, its normalisation and ReLU."""

    def __init__(self, inputs: int, outputs: int, size: int | tuple[int, int], stride: int = 1, same: bool = True):
        super().__init__()
        height, width = (size, size) if isinstance(size, int) else size
        padding = (height // 2, width // 2) if same else 0
        self.conv = nn.Conv2d(inputs, outputs, (height, width), stride, padding, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O h w"]:
        return F.relu(self.bn(self.conv(x)), inplace=True)


def _pool(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class InceptionA(nn.Module):
    """35 x 35 positions."""

    def __init__(self, inputs: int, pooled: int):
        super().__init__()
        self.branch1x1 = Convolution(inputs, 64, 1)
        self.branch5x5_1 = Convolution(inputs, 48, 1)
        self.branch5x5_2 = Convolution(48, 64, 5)
        self.branch3x3dbl_1 = Convolution(inputs, 64, 1)
        self.branch3x3dbl_2 = Convolution(64, 96, 3)
        self.branch3x3dbl_3 = Convolution(96, 96, 3)
        self.branch_pool = Convolution(inputs, pooled, 1)

    def forward(self, x: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O H W"]:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(_pool(x))], 1)


class ReductionB(nn.Module):
    """35 x 35 to 17 x 17 positions."""

    def __init__(self, inputs: int):
        super().__init__()
        self.branch3x3 = Convolution(inputs, 384, 3, stride=2, same=False)
        self.branch3x3dbl_1 = Convolution(inputs, 64, 1)
        self.branch3x3dbl_2 = Convolution(64, 96, 3)
        self.branch3x3dbl_3 = Convolution(96, 96, 3, stride=2, same=False)

    def forward(self, x: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O h w"]:
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), three, F.max_pool2d(x, 3, stride=2)], 1)


class InceptionC(nn.Module):
    """17 x 17 positions, with 7 x 7 windows in two strokes."""

    def __init__(self, inputs: int, inner: int):
        super().__init__()
        self.branch1x1 = Convolution(inputs, 192, 1)
        self.branch7x7_1 = Convolution(inputs, inner, 1)
        self.branch7x7_2 = Convolution(inner, inner, (1, 7))
        self.branch7x7_3 = Convolution(inner, 192, (7, 1))
        self.branch7x7dbl_1 = Convolution(inputs, inner, 1)
        self.branch7x7dbl_2 = Convolution(inner, inner, (7, 1))
        self.branch7x7dbl_3 = Convolution(inner, inner, (1, 7))
        self.branch7x7dbl_4 = Convolution(inner, inner, (7, 1))
        self.branch7x7dbl_5 = Convolution(inner, 192, (1, 7))
        self.branch_pool = Convolution(inputs, 192, 1)

    def forward(self, x: Float[Tensor, "B I H W"]) -> Float[Tensor, "B 768 H W"]:
        once = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat([self.branch1x1(x), once, twice, self.branch_pool(_pool(x))], 1)


class ReductionD(nn.Module):
    """17 x 17 to 8 x 8 positions."""

    def __init__(self, inputs: int):
        super().__init__()
        self.branch3x3_1 = Convolution(inputs, 192, 1)
        self.branch3x3_2 = Convolution(192, 320, 3, stride=2, same=False)
        self.branch7x7x3_1 = Convolution(inputs, 192, 1)
        self.branch7x7x3_2 = Convolution(192, 192, (1, 7))
        self.branch7x7x3_3 = Convolution(192, 192, (7, 1))
        self.branch7x7x3_4 = Convolution(192, 192, 3, stride=2, same=False)

    def forward(self, x: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O h w"]:
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([three, seven, F.max_pool2d(x, 3, stride=2)], 1)


class InceptionE(nn.Module):
    """8 x 8 positions; the last of the two takes the maximum where the others average."""

    def __init__(self, inputs: int, maximum: bool):
        super().__init__()
        self.maximum = maximum
        self.branch1x1 = Convolution(inputs, 320, 1)
        self.branch3x3_1 = Convolution(inputs, 384, 1)
        self.branch3x3_2a = Convolution(384, 384, (1, 3))
        self.branch3x3_2b = Convolution(384, 384, (3, 1))
        self.branch3x3dbl_1 = Convolution(inputs, 448, 1)
        self.branch3x3dbl_2 = Convolution(448, 384, 3)
        self.branch3x3dbl_3a = Convolution(384, 384, (1, 3))
        self.branch3x3dbl_3b = Convolution(384, 384, (3, 1))
        self.branch_pool = Convolution(inputs, 192, 1)

    def forward(self, x: Float[Tensor, "B I H W"]) -> Float[Tensor, "B 2048 H W"]:
        once = self.branch3x3_1(x)
        twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.maximum else _pool(x)
        branches = [self.branch1x1(x), self.branch3x3_2a(once), self.branch3x3_2b(once)]
        branches += [self.branch3x3dbl_3a(twice), self.branch3x3dbl_3b(twice), self.branch_pool(pooled)]
        return torch.cat(branches, 1)


class Inception(nn.Module):
    """The network, under the names of the published state dicts (566 tensors)."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, stride=2, same=False)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3, same=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, same=False)
        self.Mixed_5b = InceptionA(192, 32)
        self.Mixed_5c = InceptionA(256, 64)
        self.Mixed_5d = InceptionA(288, 64)
        self.Mixed_6a = ReductionB(288)
        self.Mixed_6b = InceptionC(768, 128)
        self.Mixed_6c = InceptionC(768, 160)
        self.Mixed_6d = InceptionC(768, 160)
        self.Mixed_6e = InceptionC(768, 192)
        self.Mixed_7a = ReductionD(768)
        self.Mixed_7b = InceptionE(1280, maximum=False)
        self.Mixed_7c = InceptionE(2048, maximum=True)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Activations:
        """`pool_3`, logits without bias and spatial features of images in [0, 255], in one pass."""
        pieces = images.split(BODY if images.device.type == "cpu" else len(images))
        return Activations(*map(torch.cat, zip(*map(self._activations, pieces), strict=True)))

    def _activations(self, images: Float[Tensor, "B 3 H W"]) -> Activations:
        pieces = images.split(STEM if images.device.type == "cpu" else len(images))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(torch.cat([self._stem(some) for some in pieces]))))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        x = self.Mixed_6d(x)
        # the block's output begins with its 1x1 branch
        spatial = x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x))))
        pool = x.mean((2, 3))
        return Activations(pool, F.linear(pool, self.fc.weight), spatial)

    def _stem(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 192 35 35"]:
        x = (resize_tf1(images, SIDE) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        return F.max_pool2d(x, 3, stride=2)

    def fold(self) -> "Inception":
        """This network, in eval mode, with each normalisation folded into its convolution, in channels-last order."""
        self.eval().requires_grad_(False)
        for module in self.modules():
            if isinstance(module, Convolution) and isinstance(module.bn, nn.BatchNorm2d):
                module.conv, module.bn = fuse_conv_bn_eval(module.conv, module.bn), nn.Identity()
        return convert_conv2d_weight_memory_format(self, torch.channels_last)


def resize_tf1(images: Float[Tensor, "B C H W"], side: int) -> Float[Tensor, "B C side side"]:
    """TensorFlow 1's ResizeBilinear: pixel i comes from i * in / out, without half-pixel centres or antialiasing.

    PyTorch's `align_corners` takes pixel i from i * (in - 1) / (out - 1): with one more row and column on either side,
    copies of the last, the two agree.
    """
    if images.shape[2:] == (side, side):
        return images
    larger = F.pad(images, (0, 1, 0, 1), mode="replicate")
    return F.interpolate(larger, (side + 1, side + 1), mode="bilinear", align_corners=True)[:, :, :side, :side]


# a block's convolutions, in their order here -> their names in the TorchScript file
_SCRIPT_BLOCKS = {
    InceptionA: (
        "conv", "tower.conv", "tower.conv_1", "tower_1.conv", "tower_1.conv_1", "tower_1.conv_2", "tower_2.conv",
    ),
    ReductionB: ("conv", "tower.conv", "tower.conv_1", "tower.conv_2"),
    InceptionC: (
        "conv", "tower.conv", "tower.conv_1", "tower.conv_2", "tower_1.conv", "tower_1.conv_1", "tower_1.conv_2",
        "tower_1.conv_3", "tower_1.conv_4", "tower_2.conv",
    ),
    ReductionD: ("tower.conv", "tower.conv_1", "tower_1.conv", "tower_1.conv_1", "tower_1.conv_2", "tower_1.conv_3"),
    InceptionE: (
        "conv", "tower_conv", "tower_mixed_conv", "tower_mixed_conv_1", "tower_1_conv", "tower_1_conv_1",
        "tower_1_mixed_conv", "tower_1_mixed_conv_1", "tower_2_conv",
    ),
}  # fmt: skip
# a normalisation's tensors there; its weight is 1 and not stored
_SCRIPT_TENSORS = {"conv.weight": "weight", "bn.bias": "beta", "bn.running_mean": "mean", "bn.running_var": "var"}


def script_names(model: Inception) -> dict[str, str]:
    """The state dict's names -> the TorchScript file's, which follow the TensorFlow graph (mixed_10/tower_1/...)."""
    names = {"fc.weight": "output.weight", "fc.bias": "output.bias"}
    stems, blocks = 0, 0
    for name, module in model.named_children():
        if isinstance(module, Convolution):
            convolutions = {name: f"layers.conv_{stems}" if stems else "layers.conv"}
            stems += 1
        elif type(module) in _SCRIPT_BLOCKS:
            block = f"layers.mixed_{blocks}" if blocks else "layers.mixed"
            pairs = zip(dict(module.named_children()), _SCRIPT_BLOCKS[type(module)], strict=True)
            convolutions = {f"{name}.{ours}": f"{block}.{own}" for ours, own in pairs}
            blocks += 1
        else:
            continue
        names |= {f"{o}.{t}": f"{s}.{u}" for o, s in convolutions.items() for t, u in _SCRIPT_TENSORS.items()}
    return names


def load_inception(path: str | Path, known: Mapping[str, WeightFile] | None = None) -> tuple[Inception, str]:
    """The network with the weights in `path`, folded for extraction, and the file's SHA-256.

    Args:
        path: pytorch-fid's or torch-fidelity's state dict, or the TorchScript file of clean-fid and StyleGAN.
        known: the files that are accepted, by SHA-256; null = the published ones.

    Raises:
        InputError: the file is missing, or is not one of the `known`; it says what was found instead.
    """
    path = Path(path)
    known = KNOWN_FILES if known is None else known
    try:
        sha256 = sha256_file(path)
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(
            f"{path} is not a file; give one of these (in an experiment, as `evaluation.inception_weights`):\n"
            f"{_names(known)}"
        ) from None
    if sha256 not in known:
        raise InputError(
            f"{path} is {_looks_like(path)}, sha256 {sha256[:8]}..., and none of the published files of these "
            f"weights:\n{_names(known)}\ndownload one of them again"
        )
    model = Inception()
    tensors = _read_script(path, model) if known[sha256].script else torch.load(path, "cpu", weights_only=True)
    model.load_state_dict(tensors, strict=True)
    return model.fold(), sha256


def _names(known: Mapping[str, WeightFile]) -> str:
    return "\n".join(f"  {file.name}: sha256 {sha256[:8]}..." for sha256, file in known.items())


def _looks_like(path: Path) -> str:
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(512)
    if start.lstrip()[:1] == b"<":
        return f"a web page of {size} bytes (a download that saved the page about the file)"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer (run `git lfs pull` where it came from)"
    if zipfile.is_zipfile(path):
        return f"a zip archive of {size} bytes, perhaps other weights"
    if start.startswith(b"PK"):
        return f"a truncated zip archive of {size} bytes"
    if start.startswith(pickle.PROTO):
        return f"a pickle of {size} bytes, truncated or other weights"
    return f"no file of weights ({size} bytes, beginning {start[:8]!r})"


def _read_script(path: Path, model: Inception) -> dict[str, Tensor]:
    """The state dict of `model` from the TorchScript file, whose digest has been checked: it contains code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit; this file exists in no other form
        found = torch.jit.load(path, map_location="cpu").state_dict()
    names, own = script_names(model), model.state_dict()
    if missing := sorted(set(names.values()) - found.keys()):
        raise InputError(f"{path} lacks {len(missing)} tensors such as {missing[0]}; use the .pth file instead")
    # what the file does not store: a normalisation's weight of 1 and its count of batches
    return {name: found[names[name]] if name in names else tensor for name, tensor in own.items()}
