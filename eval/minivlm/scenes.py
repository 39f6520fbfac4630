"""Procedurally drawn scenes: coloured shapes and letter tiles on cluttered backgrounds.

Pure NumPy, deterministic from an integer seed; no font file and no drawing library, so the same
seed gives the same pixels everywhere. Seeds are split by purpose (`SEEDS`), which keeps test scenes
apart from training scenes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SIZE = 96  # picture side, pixels
PATCH = 8  # ViT patch side, pixels
GRID = SIZE // PATCH  # 12: a picture is 12 x 12 = 144 visual tokens

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
ROWS = ("top", "center", "bottom")
COLUMNS = ("left", "middle", "right")

#: First seed of each split. Splits are far enough apart never to overlap.
SEEDS = {"test": 0, "validation": 500_000, "train": 1_000_000, "crowded": 5_000_000}

# 5 x 7 bitmap font: each letter is seven rows of five bits.
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
}
LETTERS = tuple(_FONT)
_GLYPH_H, _GLYPH_W = 10, 7
_TILE_H, _TILE_W = 16, 14
_TILE_LABEL = len(SHAPES) + 1  # patch label of a tile, after the shapes
_FG_PIXELS = 9  # a patch counts as object from this many covered pixels (of 64)


@dataclass(frozen=True)
class Shape:
    """A coloured shape; `cell` is its place in the 3 x 3 raster of the picture (0 = top left)."""

    kind: str
    colour: str
    cell: int


@dataclass(frozen=True)
class Tile:
    """A coloured tile carrying one letter."""

    letter: str
    colour: str
    cell: int


@dataclass(frozen=True)
class Scene:
    """A picture and what is on it.

    Attributes:
        image: uint8 array (96, 96, 3), RGB.
        shapes: the shapes, each colour-shape pair at most once.
        tiles: the letter tiles, each tile colour at most once.
        labels: int8 array (3, 12, 12), per patch the colour, the shape and the letter, as 1-based
            indices; 0 is none, -1 is "too little of an object to tell".
    """

    image: np.ndarray
    shapes: tuple[Shape, ...]
    tiles: tuple[Tile, ...]
    labels: np.ndarray


def cell_name(cell: int) -> str:
    """`"top left"` for cell 0 to `"bottom right"` for cell 8."""
    return f"{ROWS[cell // 3]} {COLUMNS[cell % 3]}"


def _glyph_mask(letter: str) -> np.ndarray:
    """Anti-aliased coverage of a letter, (10, 7)."""
    bits = np.array([[(row >> (4 - c)) & 1 for c in range(5)] for row in _FONT[letter]], np.float32)
    fine = np.kron(bits, np.ones((_GLYPH_H, _GLYPH_W), np.float32))
    return fine.reshape(_GLYPH_H, 7, _GLYPH_W, 5).mean((1, 3))


_GLYPHS = {letter: _glyph_mask(letter) for letter in LETTERS}


def _shape_mask(kind: str, radius: int, oversample: int = 5) -> np.ndarray:
    """Anti-aliased coverage of a shape, (2 radius + 1, 2 radius + 1)."""
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


_RADII = range(5, 10)
_SHAPE_MASKS = {(kind, r): _shape_mask(kind, r) for kind in SHAPES for r in _RADII}


def _upsampling(n: int) -> np.ndarray:
    """Linear interpolation from n knots to the picture's side, as a (96, n) matrix."""
    t = np.linspace(0, n - 1, SIZE)
    left = np.minimum(t.astype(int), n - 2)
    matrix = np.zeros((SIZE, n), np.float32)
    matrix[np.arange(SIZE), left] = 1 - (t - left)
    matrix[np.arange(SIZE), left + 1] += t - left
    return matrix


_COARSE, _FINE = _upsampling(5), _upsampling(20)
_Y, _X = np.mgrid[:SIZE, :SIZE].astype(np.float32)


def _background(rng: np.random.Generator) -> np.ndarray:
    """Smooth colour gradients, texture, muted blobs and lines, pixel noise: (3, 96, 96) float32."""
    base = rng.uniform(45, 145, 3).astype(np.float32)
    coarse = rng.standard_normal((3, 5, 5), np.float32) * rng.uniform(8, 26)
    fine = rng.standard_normal((3, 20, 20), np.float32) * rng.uniform(3, 14)
    if rng.random() < 0.5:
        fine = fine.mean(0, keepdims=True)  # grey texture
    canvas = base[:, None, None] + _COARSE @ coarse @ _COARSE.T + _FINE @ fine @ _FINE.T
    for _ in range(int(rng.integers(0, 4))):
        cy, cx = rng.uniform(0, SIZE, 2)
        a, b = rng.uniform(6, 22, 2)
        angle = rng.uniform(0, np.pi)
        u = (_X - cx) * np.cos(angle) + (_Y - cy) * np.sin(angle)
        v = -(_X - cx) * np.sin(angle) + (_Y - cy) * np.cos(angle)
        weight = np.clip(1.6 - (u / a) ** 2 - (v / b) ** 2, 0, 1) * 0.5
        canvas += weight * (rng.uniform(30, 160, 3).astype(np.float32)[:, None, None] - canvas)
    for _ in range(int(rng.integers(0, 4))):
        angle, offset = rng.uniform(0, np.pi), rng.uniform(-0.3, 1.3) * SIZE
        distance = abs(_X * np.cos(angle) + _Y * np.sin(angle) - offset)
        canvas += np.clip(1.2 - distance, 0, 1) * 0.6 * (rng.uniform(20, 190) - canvas)
    return canvas + rng.standard_normal((3, SIZE, SIZE), np.float32) * rng.uniform(2, 9)


class _Painter:
    """Paints objects onto a canvas and keeps the per-patch labels in step."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.canvas = _background(rng)
        self.labels = np.zeros((3, GRID, GRID), np.int8)

    def place(self, height: int, width: int, cell: int, jitter: int = 5) -> tuple[int, int]:
        """Top left corner of an object near the middle of its cell."""
        cy = (cell // 3) * 32 + 16 + self.rng.integers(-jitter, jitter + 1)
        cx = (cell % 3) * 32 + 16 + self.rng.integers(-jitter, jitter + 1)
        return (
            int(np.clip(cy - height // 2, 0, SIZE - height)),
            int(np.clip(cx - width // 2, 0, SIZE - width)),
        )

    def blend(self, mask: np.ndarray, rgb: np.ndarray, y: int, x: int) -> None:
        region = self.canvas[:, y : y + mask.shape[0], x : x + mask.shape[1]]
        region += mask * (rgb[:, None, None] - region)

    def jittered(self, colour: str) -> np.ndarray:
        rgb = np.array(COLOURS[colour], np.float32) + self.rng.uniform(-16, 16, 3)
        return np.clip(rgb, 0, 255).astype(np.float32)

    def label_object(self, mask: np.ndarray, y: int, x: int, colour: str, kind: int) -> None:
        covered = _patch_coverage(mask, y, x)
        weak = (covered > 0) & (covered < _FG_PIXELS) & (self.labels[0] == 0)
        self.labels[:2, weak] = -1
        strong = covered >= _FG_PIXELS
        self.labels[0][strong] = COLOUR_NAMES.index(colour) + 1
        self.labels[1][strong] = kind

    def shape(self, shape: Shape) -> None:
        mask = _SHAPE_MASKS[shape.kind, int(self.rng.choice(_RADII))]
        y, x = self.place(mask.shape[0], mask.shape[1], shape.cell)
        self.blend(mask, self.jittered(shape.colour), y, x)
        self.label_object(mask, y, x, shape.colour, SHAPES.index(shape.kind) + 1)

    def tile(self, tile: Tile) -> None:
        mask = np.ones((_TILE_H, _TILE_W), np.float32)
        y, x = self.place(_TILE_H, _TILE_W, tile.cell)
        self.blend(mask, self.jittered(tile.colour), y, x)
        ink = np.full(3, 10 if tile.colour in LIGHT else 250, np.float32)
        self.blend(_GLYPHS[tile.letter], ink, y + 3, x + 3)
        self.label_object(mask, y, x, tile.colour, _TILE_LABEL)
        glyph_box = _patch_coverage(np.ones((_GLYPH_H, _GLYPH_W), np.float32), y + 3, x + 3)
        readable = glyph_box >= 0.42 * _GLYPH_H * _GLYPH_W
        readable.flat[glyph_box.argmax()] = True
        self.labels[2][readable] = LETTERS.index(tile.letter) + 1


def _patch_coverage(mask: np.ndarray, y: int, x: int) -> np.ndarray:
    """Pixels of a mask in each patch, (12, 12)."""
    full = np.zeros((SIZE, SIZE), np.float32)
    full[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    return full.reshape(GRID, PATCH, GRID, PATCH).sum((1, 3))


def draw_scene(seed: int, crowded: bool = False) -> Scene:
    """Draw the scene of a seed.

    Args:
        seed: see `SEEDS` for the split it belongs to.
        crowded: fill all nine cells (training curriculum of the vision tower: more labels a picture).
    """
    rng = np.random.default_rng(seed)
    painter = _Painter(rng)
    cells = iter(rng.permutation(9).tolist())
    n_shapes = int(rng.choice([1, 2, 3, 4], p=[0.15, 0.3, 0.3, 0.25]))
    n_tiles = int(rng.choice([0, 1, 2], p=[0.15, 0.55, 0.3]))
    if crowded:
        n_shapes, n_tiles = 5, 4
    pairs = rng.permutation(len(SHAPES) * len(COLOURS))[:n_shapes]
    shapes = tuple(Shape(SHAPES[p % len(SHAPES)], COLOUR_NAMES[p // len(SHAPES)], next(cells)) for p in pairs)
    tiles = tuple(
        Tile(LETTERS[rng.integers(len(LETTERS))], COLOUR_NAMES[c], next(cells))
        for c in rng.permutation(len(COLOURS))[:n_tiles]
    )
    for shape in shapes:
        painter.shape(shape)
    for tile in tiles:
        painter.tile(tile)
    image = np.clip(painter.canvas, 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return Scene(np.ascontiguousarray(image), shapes, tiles, painter.labels)
