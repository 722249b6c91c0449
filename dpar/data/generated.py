"""Images that the package draws itself: eight classes that a person tells apart at a glance.

Each has flat regions (plain skies and grounds) and busy ones (foliage, waves, bricks, grass), so that some tokens are
easy to foresee and others are not. Place, size, colours and texture vary; shapes are large, with edges one pixel
wide, so that a small tokenizer can show them. An image is a function of (label, index, seed, resolution) alone.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from jaxtyping import Float, UInt8

Plane = Float[np.ndarray, "R R"]
Colour = Float[np.ndarray, "3"]


def draw(label: int, index: int, seed: int, resolution: int) -> UInt8[np.ndarray, "{resolution} {resolution} 3"]:
    """Image `index` of a class.

    Args:
        label: index of the class in `CLASSES`.
        resolution: pixels, the side.
    """
    canvas = _Canvas(np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, label, index]))), resolution)
    _PAINTERS[CLASSES[label]](canvas)
    return np.ascontiguousarray(np.clip(canvas.pixels + 0.5, 0, 255).astype(np.uint8).transpose(1, 2, 0))


@lru_cache(maxsize=8)
def _coordinates(resolution: int) -> Float[np.ndarray, "R"]:
    """Middles of the pixels along a side, from 0 to 1."""
    return (np.arange(resolution, dtype=np.float32) + 0.5) / resolution


@lru_cache(maxsize=64)
def _interpolation(resolution: int, cells: int) -> Float[np.ndarray, "R N"]:
    """Weights that draw a smooth curve through `cells + 1` values."""
    place = _coordinates(resolution) * cells
    left = np.floor(place).astype(int)
    part = place - left
    part = part * part * (3 - 2 * part)
    weights = np.zeros((resolution, cells + 1), np.float32)
    weights[np.arange(resolution), left] = 1 - part
    weights[np.arange(resolution), left + 1] += part
    return weights


class _Canvas:
    """Coordinates of a square image with x to the right and y downwards, both from 0 to 1."""

    def __init__(self, rng: np.random.Generator, resolution: int):
        self.rng = rng
        self.resolution = resolution
        self.x = _coordinates(resolution)[None, :]
        self.y = _coordinates(resolution)[:, None]
        self.pixels = np.zeros((3, resolution, resolution), np.float32)

    def uniform(self, low: float, high: float) -> float:
        """A number between the two."""
        return low + (high - low) * self.rng.random()

    def side(self) -> int:
        """1 or -1."""
        return 1 if self.rng.random() < 0.5 else -1

    def colour(self, red: int, green: int, blue: int, spread: int = 11) -> Colour:
        """A colour near this one."""
        return (np.array([red, green, blue]) + spread * self.rng.standard_normal(3)).astype(np.float32)

    def inside(self, distance: Plane) -> Plane:
        """1 where the signed distance is negative, 0 where it is positive, over an edge of a pixel."""
        return np.clip(0.5 - distance * self.resolution, 0, 1)

    def paint(self, mask: Plane, colour: Colour, texture: Plane | None = None) -> None:
        """Covers the masked part with a colour, made lighter and darker by `texture` (in levels of 255)."""
        ink = colour[:, None, None] if texture is None else colour[:, None, None] + texture
        self.pixels += mask * (ink - self.pixels)

    def gradient(self, top: Colour, bottom: Colour, turn: float = 1.0) -> None:
        """Fills the image from one colour to another, downwards (`turn` 1) or sideways (0)."""
        place = turn * self.y + (1 - turn) * self.x
        self.pixels[:] = top[:, None, None] + (bottom - top)[:, None, None] * place

    def texture(self, rows: int, columns: int, strength: float) -> Plane:
        """Smooth noise with about so many bumps down and across."""
        values = self.rng.standard_normal((rows + 1, columns + 1), dtype=np.float32) * np.float32(strength)
        return _interpolation(self.resolution, rows) @ values @ _interpolation(self.resolution, columns).T

    def disk(self, x: float, y: float, radius: float) -> Plane:
        """Signed distance to a circle."""
        return np.hypot(self.x - x, self.y - y) - radius

    def box(self, left: float, top: float, right: float, bottom: float) -> Plane:
        """Signed distance to a rectangle."""
        return np.maximum(np.maximum(left - self.x, self.x - right), np.maximum(top - self.y, self.y - bottom))

    def triangle(self, x: float, top: float, bottom: float, half: float) -> Plane:
        """Signed distance to a triangle that stands on its base, `half` to each side of `x`."""
        height = bottom - top
        slope = (np.abs(self.x - x) * height - (self.y - top) * half) / np.hypot(height, half)
        return np.maximum(slope, self.y - bottom)


def _sunset(c: _Canvas) -> None:
    horizon, x = c.uniform(0.5, 0.68), c.uniform(0.25, 0.75)
    c.gradient(c.colour(250, 120, 70), c.colour(255, 205, 130))
    c.paint(c.inside(c.disk(x, horizon - c.uniform(0.0, 0.22), c.uniform(0.13, 0.2))), c.colour(255, 245, 150, 8))
    waves = c.texture(20, 6, 26.0)
    c.paint(c.inside(horizon - c.y + 0 * c.x), c.colour(35, 70, 130), waves)
    glitter = c.inside(np.maximum(horizon - c.y, np.abs(c.x - x) - 0.11)) * np.clip(waves / 30 + 0.2, 0, 1)
    c.paint(glitter, c.colour(255, 190, 110))


def _tree(c: _Canvas) -> None:
    ground, x = c.uniform(0.68, 0.8), c.uniform(0.35, 0.65)
    c.gradient(c.colour(150, 205, 245, 10), c.colour(205, 232, 250, 8))
    c.paint(c.inside(ground - c.y + 0 * c.x), c.colour(110, 185, 60), c.texture(16, 16, 18.0))
    half = c.uniform(0.04, 0.065)
    c.paint(c.inside(c.box(x - half, 0.45, x + half, ground + 0.1)), c.colour(95, 60, 35, 8))
    radius = c.uniform(0.22, 0.29)
    crown = c.disk(x, c.uniform(0.33, 0.42), radius) + c.texture(6, 6, 0.03)
    c.paint(c.inside(crown), c.colour(35, 105, 40, 12), c.texture(12, 12, 26.0))


def _bricks(c: _Canvas) -> None:
    height = c.uniform(0.17, 0.22)
    down = c.y / height + c.rng.random()
    course = np.floor(down)
    across = c.x / (2 * height) + c.rng.random() + course % 2 / 2
    tone = c.rng.uniform(-22, 22, (8, 5))[course.astype(int), across.astype(int)] + c.texture(8, 8, 14.0)
    joint = np.minimum(np.minimum(down % 1, 1 - down % 1) * height, np.minimum(across % 1, 1 - across % 1) * 2 * height)
    c.pixels[:] = c.colour(215, 205, 190, 8)[:, None, None]
    c.paint(c.inside(0.022 - joint), c.colour(170, 70, 50), tone)
    c.paint(c.inside(c.y - c.uniform(0.14, 0.34) + 0 * c.x), c.colour(185, 215, 235, 8))


def _moon(c: _Canvas) -> None:
    c.gradient(c.colour(12, 14, 48, 6), c.colour(40, 45, 100, 8))
    x, y, radius = c.uniform(0.2, 0.8), c.uniform(0.18, 0.36), c.uniform(0.12, 0.18)
    bite = c.disk(x + radius * c.uniform(0.55, 0.8) * c.side(), y - 0.3 * radius, 0.75 * radius)
    c.paint(c.inside(np.maximum(c.disk(x, y, radius), -bite)), c.colour(240, 238, 210, 8))
    ridge = c.uniform(0.58, 0.68) + c.texture(1, 5, 0.09)[:1]
    c.paint(c.inside(ridge - c.y), c.colour(60, 62, 85, 8), c.texture(14, 14, 15.0))
    c.paint(c.inside(ridge + 0.2 + c.texture(1, 3, 0.05)[:1] - c.y), c.colour(18, 22, 30, 5))


def _house(c: _Canvas) -> None:
    ground, x = c.uniform(0.78, 0.86), c.uniform(0.42, 0.58)
    half, eaves = c.uniform(0.24, 0.31), c.uniform(0.42, 0.5)
    c.gradient(c.colour(195, 222, 245, 8), c.colour(228, 240, 248, 6))
    c.paint(c.inside(ground - c.y + 0 * c.x), c.colour(150, 150, 120, 10), c.texture(20, 20, 20.0))
    c.paint(c.inside(c.box(x - half, eaves, x + half, ground + 0.04)), c.colour(248, 238, 205, 12))
    roof = c.triangle(x, eaves - c.uniform(0.24, 0.32), eaves + 0.01, half + 0.08)
    c.paint(c.inside(roof), c.colour(200, 55, 45), c.texture(14, 14, 16.0))
    side = c.side()
    door, window = x + side * 0.48 * half, x - side * 0.45 * half
    c.paint(c.inside(c.box(door - 0.065, ground - 0.2, door + 0.065, ground + 0.04)), c.colour(120, 75, 40))
    c.paint(c.inside(c.box(window - 0.075, eaves + 0.08, window + 0.075, eaves + 0.22)), c.colour(70, 120, 190))


def _checkers(c: _Canvas) -> None:
    c.pixels[:] = c.colour(235, 225, 240, 10)[:, None, None]
    x, y, radius, cell = c.uniform(0.4, 0.6), c.uniform(0.4, 0.6), c.uniform(0.3, 0.4), c.uniform(0.14, 0.19)
    disk = c.inside(c.disk(x, y, radius))
    c.paint(disk, c.colour(250, 250, 250, 4))
    odd = (np.floor((c.x - x) / cell + 100) + np.floor((c.y - y) / cell + 100)) % 2
    c.paint(disk * odd, c.colour(110, 40, 150), c.texture(10, 10, 10.0))


def _ring(c: _Canvas) -> None:
    c.gradient(c.colour(10, 50, 60, 8), c.colour(70, 190, 185, 12), c.rng.random())
    x, y, radius = c.uniform(0.4, 0.6), c.uniform(0.4, 0.6), c.uniform(0.24, 0.32)
    band = np.abs(c.disk(x, y, radius)) - c.uniform(0.06, 0.095)
    c.paint(c.inside(band), c.colour(245, 130, 190), c.texture(9, 9, 24.0))


def _stripes(c: _Canvas) -> None:
    c.pixels[:] = c.colour(120, 125, 130, 12)[:, None, None]
    x, top, bottom = c.uniform(0.42, 0.58), c.uniform(0.08, 0.18), c.uniform(0.82, 0.92)
    sign = c.inside(c.triangle(x, top, bottom, c.uniform(0.36, 0.44)))
    c.paint(sign, c.colour(250, 205, 40, 10))
    width, lean = c.uniform(0.11, 0.15), c.side()
    place = (c.x + lean * c.y) / (1.414 * width) + c.rng.random()
    stripe = np.clip(0.5 + (np.abs(place % 2 - 1) - 0.5) * 1.414 * width * c.resolution, 0, 1)
    c.paint(sign * stripe, c.colour(25, 25, 28, 6), c.texture(10, 10, 8.0))


_PAINTERS: dict[str, Callable[[_Canvas], None]] = {
    "sunset at sea": _sunset,
    "tree": _tree,
    "brick wall": _bricks,
    "moonlit hills": _moon,
    "house": _house,
    "checkered disk": _checkers,
    "ring": _ring,
    "striped triangle": _stripes,
}
CLASSES = tuple(_PAINTERS)
