"""Image files as 8-bit RGB, by one decoder for every command.

An image is always 8-bit RGB, by `PIL.Image.convert`: grey values are repeated, a palette is looked up, CMYK is
converted, an alpha channel is dropped without blending, and of an animation the first frame is taken. Colour profiles
and EXIF orientation are ignored, as ADM and LlamaGen do; a TIFF alone is turned as its own tag says. Images with more
than 8 bits per channel have no such form and are unreadable, but for AVIF, whose decoder rounds them.

The bytes may come from anywhere: only the formats of photographs are tried (none that runs a program, as EPS does), a
file that is cut off is never filled up, and what would fill the memory is refused before it is decoded.
"""

import io
import re
import warnings
from dataclasses import dataclass

from PIL import Image, ImageFile

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM", "QOI")
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff"),
    *(".jp2", ".j2k", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".qoi"),
)
PIXELS = 2**29 // 3  # of an image: half a GiB as RGB, where Pillow itself stops
RATIO = 1000  # of an image's sides: a square is cut from it once its shorter side is that of the square

# what reading and decoding an image's file may raise
UNREADABLE = (OSError, ValueError)


@dataclass(frozen=True)
class Decoded:
    """An image as 8-bit RGB, with its original mode and transparency.

    Args:
        mode: Pillow's name of its channels in the file, such as `L`.
        transparent: whether the file has an alpha channel or a transparent colour.
    """

    image: Image.Image
    mode: str
    transparent: bool


def decode(data: bytes) -> Image.Image:
    """The image in a file as 8-bit RGB, decoded to its last byte.

    Raises:
        ValueError: as `decode_whole`.
    """
    return decode_whole(data).image


def decode_whole(data: bytes) -> Decoded:
    """The image in a file, decoded to its last byte, with its original mode and transparency.

    Raises:
        ValueError: the file is damaged, cut off, no image of `FORMATS`, of more than `PIXELS` pixels, of sides more
            than `RATIO` to 1, or of more than 8 bits per channel.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # other packages set it for all
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged EXIF data, which is not used, and of half the pixels allowed
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(*image.size)
                _check_depth(image, data)
                _check_end(image, data)
                transparent = image.mode.endswith(("A", "a")) or "transparency" in image.info
                return Decoded(image.convert("RGB"), image.mode, transparent)
    except Exception as error:  # a decoder of foreign bytes may raise anything: all of it says that they are no image
        raise ValueError(_reason(error)) from error


def _reason(error: Exception) -> str:
    said = re.sub(" <_io.BytesIO[^>]*>", "", " ".join(str(error).split()))
    expected = isinstance(error, (*UNREADABLE, SyntaxError, EOFError, Image.DecompressionBombError))
    return said if said and expected else f"damaged: {type(error).__name__}{said and f', {said}'}"


def _check_size(width: int, height: int) -> None:
    if min(width, height) < 1:
        raise ValueError(f"{width} x {height} pixels")
    if width * height > PIXELS:
        raise ValueError(f"{width} x {height} pixels, of which it may have {PIXELS:,} in all")
    if max(width, height) > RATIO * min(width, height):
        raise ValueError(f"{width} x {height} pixels, whose sides may be {RATIO} to 1 at most")


def _check_depth(image: Image.Image, data: bytes) -> None:
    """Refuses more than 8 bits per channel, of which Pillow drops some where it has three channels."""
    bits = 8
    if image.mode[0] in "IF":
        bits = 16
    elif image.format == "PNG":
        bits = data[24]  # of the header, which comes first
    elif image.format == "TIFF":
        bits = max(image.tag_v2.get(258, (1,)))  # type: ignore[attr-defined]  # BitsPerSample
        if 2 in image.tag_v2.get(339, ()):  # type: ignore[attr-defined]  # SampleFormat
            raise ValueError(f"mode {image.mode} of TIFF with signed numbers, which would be read as others")
    elif image.format == "PPM":
        head = re.match(rb"P[2356](?:\s+|#[^\n]*\n)+\d+(?:\s+|#[^\n]*\n)+\d+(?:\s+|#[^\n]*\n)+(\d+)", data)
        bits = 8 if head is None else int(head[1]).bit_length()
    elif image.format == "JPEG2000":
        bits = (data[data.index(b"\xff\x4f\xff\x51") + 42] & 0x7F) + 1  # of the first channel in the size marker
    if bits > 8:
        raise ValueError(f"mode {image.mode} of {image.format} with more than 8 bits per channel")


def _check_end(image: Image.Image, data: bytes) -> None:
    """Refuses damage that decoding does not meet: checksums of PNG, and the end of JPEG 2000, which may lack layers."""
    if image.format == "PNG":
        with Image.open(io.BytesIO(data), formats=("PNG",)) as again:
            again.verify()
    elif image.format == "JPEG2000" and b"\xff\xd9" not in data[data.index(b"\xff\x93") :]:
        raise ValueError("image file is truncated")
