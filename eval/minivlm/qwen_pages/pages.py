"""Procedurally drawn pages: flat backgrounds with a heading, a table, buttons, a panel, a dot, lines and small text.

Deterministic from an integer seed, whose split `scenes.SEEDS` tells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..drawing import COLOUR_NAMES, DIGITS, GLYPH_H, GLYPH_W, KINDS, LETTERS, LIGHT, PITCH, WORD_LENGTH, Painter
from ..drawing import shape_mask as shape_mask

SIDE = 128  # pixels
_ROW_H = GLYPH_H + 2
_TEXT_H, _TEXT_PITCH = 4, 7  # of small text, pixels


@dataclass(frozen=True)
class Button:
    """A coloured button with one letter. `cell` is its index in the 3 x 3 cells of the page."""

    letter: str
    colour: str
    cell: int


@dataclass(frozen=True)
class Page:
    """A page and its content.

    Attributes:
        image: uint8 array (128, 128, 3), RGB.
        heading: its letters; "" without a heading.
        table: rows of key (a letter, each at most once) and value (a digit), top to bottom; empty without a table.
        buttons: the buttons, each colour at most once.
        panel: colour of the panel; None without a panel.
        dot: colour of the dot; None without a dot.
        labels: int8 array (5, 16, 16), those of `drawing.LABELS`, with the kinds of `PagePainter`.
    """

    image: np.ndarray
    heading: str
    table: tuple[tuple[str, str], ...]
    buttons: tuple[Button, ...]
    panel: str | None
    dot: str | None
    labels: np.ndarray


class PagePainter(Painter):
    """Paints a page on a flat background.

    Attributes:
        dark: whether the background is dark.
        ink: RGB value of text on it, float32 (3,).
    """

    kinds = (*KINDS, "button", "panel")

    def __init__(self, rng: np.random.Generator, height: int = SIDE, width: int = SIDE):
        self.dark = bool(rng.random() < 0.5)
        shade, tint = rng.uniform(14, 48) if self.dark else rng.uniform(222, 250), rng.uniform(-8, 8, 3)
        self.paper = np.clip(shade + tint, 0, 255).astype(np.float32).round()
        self.ink = np.full(3, rng.uniform(205, 250) if self.dark else rng.uniform(5, 60), np.float32).round()
        canvas = np.broadcast_to(self.paper[:, None, None], (3, height, width)).copy()
        super().__init__(rng, height, width, canvas)

    def grey(self, strength: float) -> np.ndarray:
        """An RGB value between that of the background (0) and that of text (1), float32 (3,)."""
        return (self.paper + strength * (self.ink - self.paper)).round()

    def fill(self, y: int, x: int, height: int, width: int, rgb: np.ndarray) -> None:
        """Paint a flat rectangle that is no object."""
        self.canvas[:, max(y, 0) : y + height, max(x, 0) : x + width] = rgb[:, None, None]

    def box(self, y: int, x: int, height: int, width: int, kind: str, colour: str) -> None:
        """Paint a flat coloured object with an outline."""
        rgb = self.jittered(colour).round()
        if self.rng.random() < 0.5 or abs(rgb - self.paper).max() < 60:
            self.fill(y - 1, x - 1, height + 2, width + 2, self.grey(self.rng.uniform(0.4, 0.9)))
        self.object(np.ones((height, width), np.float32), y, x, rgb, kind, colour)

    def small_text(self, y: int, x: int, height: int, width: int) -> None:
        """Paint lines of words that are too small to be read."""
        ink = self.grey(self.rng.uniform(0.35, 0.7))
        for top in range(y, y + height - _TEXT_H + 1, _TEXT_PITCH):
            left, end = x, x + int(self.rng.integers(width // 2, width + 1))
            while (n := int(self.rng.integers(4, 12))) + left <= end:
                self.blend((self.rng.random((_TEXT_H, n)) < 0.55).astype(np.float32), ink, top, left)
                left += n + 3

    def lines(self, n: int) -> None:
        """Paint thin lines across the page."""
        for _ in range(n):
            colour = self.grey(self.rng.uniform(0.15, 0.5))
            at, across = int(self.rng.integers(4, self.height - 4)), self.rng.random() < 0.7
            self.fill(*((at, 0, 1, self.width) if across else (0, at, self.height, 1)), colour)


def _paint_heading(painter: PagePainter, heading: str, cell: int, bar: bool) -> None:
    width = PITCH * len(heading) - 1
    y, x = painter.draw_position(GLYPH_H, width, (cell,), jitter=6)
    if bar:
        painter.fill(y - 3, 0, GLYPH_H + 6, painter.width, painter.grey(0.15))
    else:
        painter.fill(y + GLYPH_H + 2, x - 2, 1, width + 4, painter.grey(0.6))
    for i, letter in enumerate(heading):
        painter.character(letter, painter.ink, y, x + i * PITCH, slot=i)


def _paint_table(painter: PagePainter, table: tuple[tuple[str, str], ...], cells: tuple[int, int]) -> None:
    rng = painter.rng
    height, width = _ROW_H * len(table) + 2, int(rng.integers(25, 29))
    y, x = painter.draw_position(height, width, cells, jitter=2)
    style = rng.choice(["lines", "stripes", "plate"])
    plate, line = painter.grey(rng.uniform(0, 0.12)), painter.grey(rng.uniform(0.3, 0.7))
    painter.fill(y - 1, x - 1, height + 2, width + 2, line if style != "stripes" else plate)
    painter.object(np.ones((height, width), np.float32), y, x, plate, "table")
    for i, (key, value) in enumerate(table):
        top = y + 2 + i * _ROW_H
        if style == "stripes" and i % 2:
            painter.fill(top - 1, x, _ROW_H, width, painter.grey(0.2))
        if style == "lines" and i:
            painter.fill(top - 2, x, 1, width, line)
        painter.character(key, painter.ink, top, x + 3)
        painter.character(value, painter.ink, top, x + width - 3 - GLYPH_W, key=key)


def _paint_button(painter: PagePainter, button: Button) -> None:
    height, width = int(painter.rng.integers(14, 19)), int(painter.rng.integers(14, 27))
    y, x = painter.draw_position(height, width, (button.cell,))
    painter.box(y, x, height, width, "button", button.colour)
    ink = np.full(3, 10 if button.colour in LIGHT else 250, np.float32)
    painter.character(button.letter, ink, y + (height - GLYPH_H) // 2, x + (width - GLYPH_W) // 2)


def _paint_panel(painter: PagePainter, colour: str, cell: int) -> None:
    height, width = (int(n) for n in painter.rng.integers(22, 35, 2))
    y, x = painter.draw_position(height, width, (cell,), jitter=3)
    painter.box(y, x, height, width, "panel", colour)


def _paint_dot(painter: PagePainter, colour: str, cell: int) -> None:
    mask = shape_mask("circle", 3)
    y, x = painter.draw_position(len(mask), len(mask), (cell,), jitter=10)
    painter.object(mask, y, x, painter.jittered(colour).round(), "dot", colour)


def draw_page(seed: int) -> Page:
    """Draw the page of a seed; `scenes.SEEDS` says which split it belongs to."""
    rng = np.random.default_rng((seed, 3))
    painter = PagePainter(rng)
    has_heading, has_table, has_panel, has_dot, has_bar = rng.random(5) < (0.8, 0.75, 0.6, 0.5, 0.4)
    free = rng.permutation(9).tolist()
    heading_cell = next(c for c in free if c < 3)
    heading = "".join(LETTERS[i] for i in rng.integers(len(LETTERS), size=WORD_LENGTH)) if has_heading else ""
    if has_heading:
        free.remove(heading_cell)
        if has_bar:  # it goes from the left to the right
            free = [c for c in free if c > 2]
    table: tuple[tuple[str, str], ...] = ()
    table_cells = (0, 0)
    if has_table:  # stands in two cells, one above the other
        top = next(c for c in free if c + 3 in free)
        table_cells = (top, top + 3)
        free = [c for c in free if c not in table_cells]
        keys = rng.permutation(len(LETTERS))[: rng.integers(3, 6)]
        table = tuple((LETTERS[k], DIGITS[rng.integers(len(DIGITS))]) for k in keys)
    cells = iter(free)
    # Each colour is that of one thing; white things would not be seen on white.
    colours = iter([COLOUR_NAMES[i] for i in rng.permutation(len(COLOUR_NAMES))])
    n_buttons = int(rng.integers(1, min(4, len(free)) + 1))
    buttons = tuple(Button(LETTERS[rng.integers(len(LETTERS))], next(colours), next(cells)) for _ in range(n_buttons))
    panel_cell, dot_cell = (next(cells, None) if has else None for has in (has_panel, has_dot))
    panel = next(colours) if panel_cell is not None else None
    left = [c for c in colours if painter.dark or c != "white"]
    dot = left[0] if dot_cell is not None else None

    painter.lines(int(rng.integers(0, 3)))
    for cell in cells:
        if rng.random() < 0.7:
            height, width = int(rng.integers(10, 33)), int(rng.integers(20, 37))
            painter.small_text(*painter.draw_position(height, width, (cell,), jitter=2), height, width)
    if heading:
        _paint_heading(painter, heading, heading_cell, bool(has_bar))
    if table:
        _paint_table(painter, table, table_cells)
    for button in buttons:
        _paint_button(painter, button)
    if panel is not None and panel_cell is not None:
        _paint_panel(painter, panel, panel_cell)
    if dot is not None and dot_cell is not None:
        _paint_dot(painter, dot, dot_cell)
    return Page(painter.image(), heading, table, buttons, panel, dot, painter.labels)
