"""Originals above their reconstructions, as a PNG."""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

SIDE, GAP, FONT = 128, 4, 14  # pixels: the least side of a shown image, white between two, height of letters


def side_by_side(
    pairs: Sequence[tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W 3"]]],
    captions: Sequence[str],
    columns: int,
) -> bytes:
    """A PNG of pairs, each an original, its reconstruction below, and its caption above; `columns` pairs per line."""
    height, width = pairs[0][0].shape[:2]
    scale = max(1, -(-SIDE // max(height, width)))  # small images are enlarged, pixel by pixel
    size = (width * scale, height * scale)
    font = ImageFont.load_default(FONT)
    margin = int(font.getlength("reconstructed")) + 2 * GAP
    pair_height = FONT + 2 * GAP + 2 * (size[1] + GAP)
    lines = -(-len(pairs) // columns)
    sheet_size = margin + min(columns, len(pairs)) * (size[0] + GAP), lines * (pair_height + GAP)
    sheet = Image.new("RGB", sheet_size, "white")
    draw = ImageDraw.Draw(sheet)
    for i, (pair, caption) in enumerate(zip(pairs, captions, strict=True)):
        line, column = divmod(i, columns)
        left, top = margin + column * (size[0] + GAP), line * (pair_height + GAP)
        draw.text((left, top + GAP), _fitting(caption, font, size[0]), fill="black", font=font)
        for name, pixels in zip(("original", "reconstructed"), pair, strict=True):
            below = top + FONT + 2 * GAP if name == "original" else top + FONT + 3 * GAP + size[1]
            sheet.paste(Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST), (left, below))
            if column == 0:
                draw.text((GAP, below + size[1] // 2), name, fill="black", font=font, anchor="lm")
    data = BytesIO()
    sheet.save(data, format="PNG")
    return data.getvalue()


def _fitting(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    """The text, or as much of its beginning as is at most `width` pixels wide."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}..") > width:
        text = text[:-1]
    return f"{text}.."
