"""Procedurally drawn scenes: coloured shapes, letter tiles, a sign, a table and a dot on cluttered backgrounds.

Deterministic from an integer seed. Seeds are split by purpose (`SEEDS`), which keeps test scenes apart
from training scenes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .drawing import (
    COLOUR_NAMES,
    DIGITS,
    GLYPH_H,
    GLYPH_W,
    LETTERS,
    LIGHT,
    PATCH,
    PITCH,
    SHAPES,
    WORD_LENGTH,
    Painter,
    shape_mask,
)

SIZE = 96  # side of a square picture, pixels
GRID = SIZE // PATCH  # a square image is 12 x 12 = 144 visual tokens

ROWS = ("top", "center", "bottom")
COLUMNS = ("left", "middle", "right")

#: First seed of each split. They are so far apart that splits do not overlap.
SEEDS = {"test": 0, "validation": 500_000, "train": 1_000_000}

_TILE_H, _TILE_W = 16, 14
_SIGN_H, _SIGN_W = GLYPH_H + 4, PITCH * WORD_LENGTH + 3
_ROW_H, _TABLE_W = GLYPH_H + 2, 2 * GLYPH_W + 11
_RADII = range(5, 10)  # of shapes, pixels
_DOT_RADIUS = 3  # 0.4 % of a square picture


@dataclass(frozen=True)
class Shape:
    """A coloured shape. `cell` is its index in the 3 x 3 cells of the image, row by row from the top left."""

    kind: str
    colour: str
    cell: int


@dataclass(frozen=True)
class Tile:
    """A coloured tile with one letter."""

    letter: str
    colour: str
    cell: int


@dataclass(frozen=True)
class Scene:
    """An image and its content.

    Attributes:
        image: uint8 array (H, W, 3), RGB.
        shapes: the shapes, each colour-shape pair at most once.
        tiles: the letter tiles, each tile colour at most once.
        word: the letters on the sign; "" without a sign.
        table: rows of key (a letter, each at most once) and value (a digit), top to bottom; empty without a table.
        dot: colour of the dot, a disc of 7 pixels; None without a dot.
        labels: int8 array (5, H / 8, W / 8), those of `drawing.LABELS`.
    """

    image: np.ndarray
    shapes: tuple[Shape, ...]
    tiles: tuple[Tile, ...]
    word: str
    table: tuple[tuple[str, str], ...]
    dot: str | None
    labels: np.ndarray


def cell_name(cell: int) -> str:
    """The name of a cell, from `"top left"` for 0 to `"bottom right"` for 8."""
    return f"{ROWS[cell // 3]} {COLUMNS[cell % 3]}"


def _paint_shape(painter: Painter, shape: Shape) -> None:
    mask = shape_mask(shape.kind, int(painter.rng.choice(_RADII)))
    y, x = painter.draw_position(len(mask), len(mask), (shape.cell,))
    painter.object(mask, y, x, painter.jittered(shape.colour), shape.kind, shape.colour)


def _paint_tile(painter: Painter, tile: Tile) -> None:
    y, x = painter.draw_position(_TILE_H, _TILE_W, (tile.cell,))
    mask = np.ones((_TILE_H, _TILE_W), np.float32)
    painter.object(mask, y, x, painter.jittered(tile.colour), "tile", tile.colour)
    ink = np.full(3, 10 if tile.colour in LIGHT else 250, np.float32)
    painter.character(tile.letter, ink, y + 3, x + 3)


def _paint_plate(
    painter: Painter, height: int, width: int, cells: tuple[int, ...], kind: str
) -> tuple[int, int, np.ndarray]:
    """Paint a dark or light plate; returns its top left corner y, x and the RGB value of the ink to write on it."""
    y, x = painter.draw_position(height, width, cells, jitter=4 if len(cells) == 1 else 3)
    shade = painter.rng.uniform(-12, 12)
    plate, ink = (30 + shade, 235 + shade) if painter.rng.random() < 0.5 else (225 + shade, 25 + shade)
    painter.object(np.full((height, width), 0.92, np.float32), y, x, np.full(3, plate, np.float32), kind)
    return y, x, np.full(3, ink, np.float32)


def _paint_sign(painter: Painter, word: str, cell: int) -> None:
    y, x, ink = _paint_plate(painter, _SIGN_H, _SIGN_W, (cell,), "sign")
    for i, letter in enumerate(word):
        painter.character(letter, ink, y + 2, x + 2 + i * PITCH, slot=i)


def _paint_table(painter: Painter, table: tuple[tuple[str, str], ...], cells: tuple[int, int]) -> None:
    y, x, ink = _paint_plate(painter, _ROW_H * len(table) + 2, _TABLE_W, cells, "table")
    for i, (key, value) in enumerate(table):
        painter.character(key, ink, y + 2 + i * _ROW_H, x + 3)
        painter.character(value, ink, y + 2 + i * _ROW_H, x + _TABLE_W - 3 - GLYPH_W, key=key)


def draw_scene(seed: int, height: int = SIZE, width: int = SIZE, alike: bool = False) -> Scene:
    """Draw the scene of a seed.

    Args:
        seed: `SEEDS` says which split it belongs to.
        height: of the image in pixels, a multiple of 8 and at least 96.
        width: likewise.
        alike: shapes share two colours and two kinds, so that neither the colour nor the kind alone identifies one.

    Raises:
        ValueError: `height` or `width` is not such a number.
    """
    for name, side in (("height", height), ("width", width)):
        if side % PATCH or side < SIZE:
            raise ValueError(f"{name}={side}: accepted are multiples of {PATCH} from {SIZE} pixels up")
    rng = np.random.default_rng(seed)
    free = rng.permutation(9).tolist()
    has_table, has_sign, has_dot = rng.random(3) < 0.6
    n_shapes = int(rng.choice([1, 2, 3, 4], p=[0.15, 0.3, 0.3, 0.25]))
    n_tiles = int(rng.choice([0, 1, 2], p=[0.2, 0.5, 0.3]))
    table: tuple[tuple[str, str], ...] = ()
    table_cells = (0, 0)
    if has_table:  # stands in two cells, one above the other
        top = next(c for c in free if c < 6)
        table_cells = (top, top + 3)
        free = [c for c in free if c not in table_cells]
        keys = rng.permutation(len(LETTERS))[: rng.integers(3, 5)]
        table = tuple((LETTERS[k], DIGITS[rng.integers(len(DIGITS))]) for k in keys)
    cells = iter(free)
    word = "".join(LETTERS[i] for i in rng.integers(len(LETTERS), size=WORD_LENGTH)) if has_sign else ""
    sign_cell = next(cells) if word else 0
    dot = COLOUR_NAMES[rng.integers(len(COLOUR_NAMES))] if has_dot else None
    dot_cell = next(cells) if dot else 0
    pairs = rng.permutation(len(SHAPES) * len(COLOUR_NAMES))
    if alike:
        (c, d), (k, m) = (rng.choice(len(names), 2, replace=False) for names in (COLOUR_NAMES, SHAPES))
        pairs = rng.permutation([colour * len(SHAPES) + kind for colour in (c, d) for kind in (k, m)])
    pairs = pairs[:n_shapes]
    shapes = tuple(Shape(SHAPES[p % len(SHAPES)], COLOUR_NAMES[p // len(SHAPES)], next(cells)) for p in pairs)
    tiles = tuple(
        Tile(LETTERS[rng.integers(len(LETTERS))], COLOUR_NAMES[colour], cell)
        # without a free cell the last tile is left out
        for colour, cell in zip(rng.permutation(len(COLOUR_NAMES))[:n_tiles], cells, strict=False)
    )

    painter = Painter(rng, height, width)
    if table:
        _paint_table(painter, table, table_cells)
    if word:
        _paint_sign(painter, word, sign_cell)
    for shape in shapes:
        _paint_shape(painter, shape)
    for tile in tiles:
        _paint_tile(painter, tile)
    if dot:
        mask = shape_mask("circle", _DOT_RADIUS)
        y, x = painter.draw_position(len(mask), len(mask), (dot_cell,), jitter=10)
        painter.object(mask, y, x, painter.jittered(dot), "dot", dot)
    return Scene(painter.image(), shapes, tiles, word, table, dot, painter.labels)
