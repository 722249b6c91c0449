"""Image files as 8-bit RGB, by one decoder for every command.

An image is always 8-bit RGB, by `PIL.Image.convert`: grey values are repeated, a palette is looked up, CMYK is
converted, an alpha channel is dropped without blending, and of an animation the first frame is taken. EXIF
orientation is ignored, as ADM and LlamaGen do. Pictures with more than 8 bits a channel have no such form and count
as unreadable.
"""

import io
import re
import struct
import warnings
import zlib

from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")

# what Pillow raises for files that are cut off, damaged or no images
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def decode(data: bytes) -> Image.Image:
    """The picture in an image file as 8-bit RGB, decoded to its last byte.

    Raises:
        ValueError: the file is damaged, cut off, no image, or has more than 8 bits a channel.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged EXIF data, which is not used
            with Image.open(io.BytesIO(data)) as image:
                if image.mode[0] in "IF":
                    raise ValueError(f"mode {image.mode} has more than 8 bits a channel")
                return image.convert("RGB")
    except UNREADABLE as error:
        raise ValueError(re.sub(" <_io.BytesIO[^>]*>", "", str(error))) from error
