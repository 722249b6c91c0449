"""Samples as a contact sheet, one row per class."""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

GAP = 2  # pixels of white between two squares


def class_rows(labels: Int[np.ndarray, " N"], columns: int, rows: int) -> list[Int[np.ndarray, "_"]]:
    """The images to show: the first `columns` of at most `rows` classes, spread evenly over those present."""
    classes = np.unique(labels)
    chosen = classes[np.unique(np.linspace(0, len(classes) - 1, min(rows, len(classes))).round().astype(int))]
    return [np.flatnonzero(labels == label)[:columns] for label in chosen]


def contact_sheet(rows: Sequence[UInt8[np.ndarray, "_ H W 3"]]) -> bytes:
    """A PNG of the images, a line per row; lines may differ in length, the rest is white."""
    side_y, side_x = rows[0].shape[1:3]
    columns = max(len(row) for row in rows)
    height, width = len(rows) * (side_y + GAP) - GAP, columns * (side_x + GAP) - GAP
    sheet = np.full((height, width, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = i * (side_y + GAP), j * (side_x + GAP)
            sheet[top : top + side_y, left : left + side_x] = image
    data = BytesIO()
    Image.fromarray(sheet).save(data, format="PNG")
    return data.getvalue()
