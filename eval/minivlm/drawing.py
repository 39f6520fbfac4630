"""Painting of scenes: glyphs, shapes, cluttered backgrounds, and labels of the content of each patch.

NumPy only, without a font file or a drawing library, so that a seed gives the same pixels on every machine.
"""

from __future__ import annotations

import functools

import numpy as np

PATCH = 8  # height and width of the area of one visual token, pixels

SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
COLOURS = {
    "red": (215, 35, 35),
    "green": (35, 165, 55),
    "blue": (40, 75, 225),
    "yellow": (235, 215, 45),
    "purple": (155, 55, 190),
    "cyan": (40, 205, 215),
    "white": (245, 245, 245),
    "orange": (240, 130, 25),
}
COLOUR_NAMES = tuple(COLOURS)
LIGHT = {"yellow", "cyan", "white", "orange"}  # tiles of these colours carry dark ink

# 5 x 7 bitmap font: each character is seven rows of five bits.
_FONT = {
    "A": (14, 17, 17, 31, 17, 17, 17),
    "C": (14, 17, 16, 16, 16, 17, 14),
    "E": (31, 16, 16, 30, 16, 16, 31),
    "F": (31, 16, 16, 30, 16, 16, 16),
    "H": (17, 17, 17, 31, 17, 17, 17),
    "J": (7, 2, 2, 2, 2, 18, 12),
    "K": (17, 18, 20, 24, 20, 18, 17),
    "L": (16, 16, 16, 16, 16, 16, 31),
    "N": (17, 17, 25, 21, 19, 17, 17),
    "P": (30, 17, 17, 30, 16, 16, 16),
    "R": (30, 17, 17, 30, 20, 18, 17),
    "S": (15, 16, 16, 14, 1, 1, 30),
    "T": (31, 4, 4, 4, 4, 4, 4),
    "U": (17, 17, 17, 17, 17, 17, 14),
    "X": (17, 17, 10, 4, 10, 17, 17),
    "Y": (17, 17, 17, 10, 4, 4, 4),
    "0": (14, 17, 17, 17, 17, 17, 14),
    "1": (4, 12, 4, 4, 4, 4, 14),
    "2": (14, 17, 1, 6, 8, 16, 31),
    "3": (31, 1, 2, 6, 1, 17, 14),
    "4": (2, 6, 10, 18, 31, 2, 2),
    "5": (31, 16, 30, 1, 1, 17, 14),
    "6": (6, 8, 16, 30, 17, 17, 14),
    "7": (31, 1, 2, 4, 8, 8, 8),
    "8": (14, 17, 17, 14, 17, 17, 14),
    "9": (14, 17, 17, 15, 1, 2, 12),
}
CHARACTERS = tuple(_FONT)
LETTERS = tuple(c for c in CHARACTERS if c.isalpha())
DIGITS = tuple(c for c in CHARACTERS if c.isdigit())
GLYPH_H, GLYPH_W, PITCH = 10, 7, 8  # pixels; the pitch is the distance between the left sides of neighbouring letters

#: The labels of a patch, in order. Values are indices from 1; 0 is none, and -1 too little of an object to tell.
#: `slot`: index of a letter in its word. `key`: for a value of a table, the letter of its row.
LABELS = ("colour", "kind", "character", "slot", "key")
KINDS = (*SHAPES, "tile", "dot", "sign", "table")
WORD_LENGTH = 3
_OBJECT_PIXELS = 9  # a patch counts as an object from this many covered pixels (of 64)


def _glyph(character: str) -> np.ndarray:
    """Anti-aliased coverage of a character, float32 (10, 7)."""
    bits = np.array([[(row >> (4 - c)) & 1 for c in range(5)] for row in _FONT[character]], np.float32)
    fine = np.kron(bits, np.ones((GLYPH_H, GLYPH_W), np.float32))
    return fine.reshape(GLYPH_H, 7, GLYPH_W, 5).mean((1, 3))


GLYPHS = {c: _glyph(c) for c in CHARACTERS}


@functools.cache
def shape_mask(kind: str, radius: int, oversample: int = 5) -> np.ndarray:
    """Anti-aliased coverage of a shape, float32 (2 radius + 1, 2 radius + 1)."""
    side = 2 * radius + 1
    y, x = np.mgrid[: side * oversample, : side * oversample].astype(np.float32)
    y = (y + 0.5) / oversample - side / 2
    x = (x + 0.5) / oversample - side / 2
    r = radius + 0.3
    square_distance = x * x + y * y
    inside = {
        "circle": square_distance <= r * r,
        "square": (abs(x) <= r * 0.86) & (abs(y) <= r * 0.86),
        "triangle": (y <= r * 0.85) & (y >= -r) & (abs(x) <= (y + r) * 0.55),
        "cross": ((abs(x) <= r * 0.32) | (abs(y) <= r * 0.32)) & (abs(x) <= r) & (abs(y) <= r),
        "ring": (square_distance <= r * r) & (square_distance >= (r * 0.55) ** 2),
        "diamond": abs(x) + abs(y) <= r * 1.05,
    }[kind]
    return inside.reshape(side, oversample, side, oversample).mean((1, 3)).astype(np.float32)


@functools.cache
def _upsampling(knots: int, side: int) -> np.ndarray:
    """Matrix of the linear interpolation from `knots` values to `side` pixels, float32 (side, knots)."""
    t = np.linspace(0, knots - 1, side)
    left = np.minimum(t.astype(int), knots - 2)
    matrix = np.zeros((side, knots), np.float32)
    matrix[np.arange(side), left] = 1 - (t - left)
    matrix[np.arange(side), left + 1] += t - left
    return matrix


@functools.cache
def _coordinates(height: int, width: int) -> np.ndarray:
    return np.mgrid[:height, :width].astype(np.float32)


def background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Smooth colour gradients, texture, muted blobs and lines, pixel noise: float32 (3, height, width)."""
    ys, xs = _coordinates(height, width)

    def noise(knots: int, strength: float) -> np.ndarray:
        field = rng.standard_normal((3, knots, knots), np.float32) * strength
        if knots > 5 and rng.random() < 0.5:
            field = field.mean(0, keepdims=True)  # grey texture
        return _upsampling(knots, height) @ field @ _upsampling(knots, width).T

    base = rng.uniform(45, 145, 3).astype(np.float32)
    canvas = base[:, None, None] + noise(5, rng.uniform(8, 26)) + noise(20, rng.uniform(3, 14))
    for _ in range(int(rng.integers(0, 4))):
        cy, cx = rng.uniform(0, height), rng.uniform(0, width)
        a, b = rng.uniform(6, 22, 2)
        angle = rng.uniform(0, np.pi)
        u = (xs - cx) * np.cos(angle) + (ys - cy) * np.sin(angle)
        v = -(xs - cx) * np.sin(angle) + (ys - cy) * np.cos(angle)
        weight = np.clip(1.6 - (u / a) ** 2 - (v / b) ** 2, 0, 1) * 0.5
        canvas += weight * (rng.uniform(30, 160, 3).astype(np.float32)[:, None, None] - canvas)
    for _ in range(int(rng.integers(0, 4))):
        angle, offset = rng.uniform(0, np.pi), rng.uniform(-0.3, 1.3) * width
        distance = abs(xs * np.cos(angle) + ys * np.sin(angle) - offset)
        canvas += np.clip(1.2 - distance, 0, 1) * 0.6 * (rng.uniform(20, 190) - canvas)
    return canvas + rng.standard_normal((3, height, width), np.float32) * rng.uniform(2, 9)


class Painter:
    """Paints objects onto a background, and labels the patches that they cover.

    Objects are placed in 3 x 3 cells that divide the image.

    Args:
        rng: draws positions and colours.
        height: of the image in pixels, a multiple of 8.
        width: likewise.
        canvas: the background, float32 (3, height, width), which is painted over; None: one is drawn.

    Attributes:
        canvas: float32 (3, height, width).
        labels: int8 (5, height / 8, width / 8), those of `LABELS`.
        kinds: of objects, in the order of their labels.
    """

    kinds: tuple[str, ...] = KINDS

    def __init__(self, rng: np.random.Generator, height: int, width: int, canvas: np.ndarray | None = None):
        self.rng, self.height, self.width = rng, height, width
        self.canvas = background(rng, height, width) if canvas is None else canvas
        self.labels = np.zeros((len(LABELS), height // PATCH, width // PATCH), np.int8)

    def draw_position(self, height: int, width: int, cells: tuple[int, ...], jitter: int = 5) -> tuple[int, int]:
        """Draw the top left corner (y, x) of an object near the middle of its cells, in pixels."""
        cy = np.mean([c // 3 + 0.5 for c in cells]) * self.height / 3 + self.rng.integers(-jitter, jitter + 1)
        cx = np.mean([c % 3 + 0.5 for c in cells]) * self.width / 3 + self.rng.integers(-jitter, jitter + 1)
        return (
            int(np.clip(round(cy - height / 2), 0, self.height - height)),
            int(np.clip(round(cx - width / 2), 0, self.width - width)),
        )

    def jittered(self, colour: str) -> np.ndarray:
        """Draw an RGB value near that of a colour, float32 (3,)."""
        rgb = np.array(COLOURS[colour], np.float32) + self.rng.uniform(-16, 16, 3)
        return np.clip(rgb, 0, 255).astype(np.float32)

    def blend(self, mask: np.ndarray, rgb: np.ndarray, y: int, x: int) -> None:
        """Paint a colour, with the opacity of `mask` (height, width), at a top left corner."""
        region = self.canvas[:, y : y + mask.shape[0], x : x + mask.shape[1]]
        region += mask * (rgb[:, None, None] - region)

    def object(self, mask: np.ndarray, y: int, x: int, rgb: np.ndarray, kind: str, colour: str | None = None) -> None:
        """Paint an object and label its patches; without `colour` their label for it is none."""
        self.blend(mask, rgb, y, x)
        covered = self._coverage(mask, y, x)
        enough = min(_OBJECT_PIXELS, 0.3 * mask.sum())  # a dot may lie across four patches
        weak = (covered > 0) & (covered < enough) & (self.labels[1] == 0)
        self.labels[:2, weak] = -1
        strong = covered >= enough
        self.labels[0][strong] = COLOUR_NAMES.index(colour) + 1 if colour else 0
        self.labels[1][strong] = self.kinds.index(kind) + 1

    def character(
        self, character: str, ink: np.ndarray, y: int, x: int, slot: int | None = None, key: str | None = None
    ) -> None:
        """Paint a character, and label the patches that show enough of it with it, its slot and its key."""
        self.blend(GLYPHS[character], ink, y, x)
        box = self._coverage(np.ones((GLYPH_H, GLYPH_W), np.float32), y, x)
        readable = box >= 0.42 * GLYPH_H * GLYPH_W
        readable.flat[box.argmax()] = True
        self.labels[2][readable] = CHARACTERS.index(character) + 1
        if slot is not None:
            self.labels[3][readable] = slot + 1
        if key is not None:
            self.labels[4][readable] = LETTERS.index(key) + 1

    def image(self) -> np.ndarray:
        """The canvas as uint8 (height, width, 3)."""
        return np.ascontiguousarray(np.clip(self.canvas, 0, 255).astype(np.uint8).transpose(1, 2, 0))

    def _coverage(self, mask: np.ndarray, y: int, x: int) -> np.ndarray:
        """Number of pixels of a mask in each patch, float32 (height / 8, width / 8)."""
        full = np.zeros((self.height, self.width), np.float32)
        full[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
        return full.reshape(self.height // PATCH, PATCH, self.width // PATCH, PATCH).sum((1, 3))
