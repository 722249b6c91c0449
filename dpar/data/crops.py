"""Squares cut from images, as bytes: ADM's centre crop, ten-crop views, and the scale that networks see."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor


def center_crop(image: Image.Image, side: int) -> Image.Image:
    """The central square of an image, resized as ADM does: halved by averages while it can be, then bicubic.

    Args:
        image: RGB of any size; a smaller one is enlarged.
        side: pixels.
    """
    image = with_shorter_side(image, side)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def with_shorter_side(image: Image.Image, side: int) -> Image.Image:
    """An image whose shorter side has `side` pixels, resized as ADM does: halved while it can be, then bicubic."""
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def to_uint8(image: Image.Image) -> UInt8[Tensor, "3 H W"]:
    """The pixels of an RGB image."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def views(
    image: Image.Image, resolution: int, crop_ranges: Sequence[float], ten_crop: bool
) -> UInt8[Tensor, "V 3 {resolution} {resolution}"]:
    """The training views of an image (Section 4.1): crops of its centre square at each range, and their mirror images.

    In the order of LlamaGen's files: for each range top left, top right, bottom left, bottom right, centre, then the
    same five of the mirrored square.

    Args:
        image: RGB of any size.
        resolution: pixels, the side of a view.
        crop_ranges: side of the centre square, in `resolution`s, at least 1; rounded down to pixels.
        ten_crop: all ten; otherwise the centre and its mirror image.
    """
    found = []
    for crop_range in crop_ranges:
        side = int(resolution * crop_range)
        square = to_uint8(center_crop(image, side))
        far, middle = side - resolution, round((side - resolution) / 2)
        corners = [(0, 0), (0, far), (far, 0), (far, far)] if ten_crop else []
        for pixels in (square, square.flip(-1)):
            for top, left in [*corners, (middle, middle)]:
                found.append(pixels[:, top : top + resolution, left : left + resolution])
    return torch.stack(found)


def to_model_input(pixels: UInt8[Tensor, "*B 3 H W"]) -> Float[Tensor, "*B 3 H W"]:
    """Pixels of 0 to 255 as float32 from -1 to 1."""
    return (pixels.float() / 255 - 0.5) / 0.5


def resized(images: UInt8[Tensor, "B 3 H W"], side: int) -> UInt8[Tensor, "B 3 side side"]:
    """Images as a network of another size sees them."""
    if images.shape[-1] == side:
        return images
    floats = F.interpolate(images.float(), size=(side, side), mode="bicubic", align_corners=False, antialias=True)
    return floats.round().clamp(0, 255).to(torch.uint8)
