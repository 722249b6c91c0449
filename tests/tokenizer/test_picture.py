from io import BytesIO

import numpy as np
from PIL import Image

from dpar.tokenizer.picture import side_by_side


def flat(colour, height, width):
    return np.full((height, width, 3), colour, np.uint8)


def test_originals_stand_over_their_reconstructions():
    colours = [((255, 0, 0), (0, 255, 0)), ((0, 0, 255), (255, 255, 0)), ((255, 0, 255), (0, 255, 255))]
    pairs = [(flat(a, 32, 64), flat(b, 32, 64)) for a, b in colours]
    sheet = np.asarray(Image.open(BytesIO(side_by_side(pairs, ["class 0", "class 1", "class 2"], columns=2))))
    for original, rebuilt in colours:
        (top, left), (bottom, right) = np.argwhere((sheet == original).all(2))[[0, -1]]
        below = np.argwhere((sheet == rebuilt).all(2))
        assert (bottom - top + 1, right - left + 1) == (64, 128)
        assert below[0][0] > bottom
        assert below[0][1] == left
        assert len(below) == 64 * 128


def test_large_pictures_are_not_enlarged():
    sheet = Image.open(BytesIO(side_by_side([(flat(0, 256, 256), flat(9, 256, 256))], ["class 1"], columns=8)))
    assert 512 < sheet.height < 600
