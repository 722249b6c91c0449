"""The contact sheet shows the right images in the right places."""

from io import BytesIO

import numpy as np
from PIL import Image

from dpar.sampling.picture import GAP, class_rows, contact_sheet


def test_a_row_for_each_class():
    labels = np.array([2, 0, 2, 1, 0, 2, 2])
    rows = class_rows(labels, columns=3, rows=8)
    assert [row.tolist() for row in rows] == [[1, 4], [3], [0, 2, 5]]
    assert [row.tolist() for row in class_rows(np.arange(100), columns=3, rows=4)] == [[0], [33], [66], [99]]


def test_images_stand_in_their_places():
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    sheet = np.asarray(Image.open(BytesIO(contact_sheet([images[:2], images[2:]]))))
    assert sheet.shape == (2 * 4 + GAP, 3 * 6 + 2 * GAP, 3)
    assert np.array_equal(sheet[:4, 6 + GAP : 12 + GAP], images[1])
    assert np.array_equal(sheet[4 + GAP :, 2 * (6 + GAP) :], images[4])
    assert (sheet[:4, 2 * (6 + GAP) :] == 255).all()
