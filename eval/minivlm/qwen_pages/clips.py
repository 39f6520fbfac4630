"""Procedurally drawn short videos: a background that stays, one or two shapes that may move, and a dot that appears.

Deterministic from an integer seed, whose split `scenes.SEEDS` tells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..drawing import COLOUR_NAMES, SHAPES, Painter, background, shape_mask
from .pages import PagePainter

SIDE, FRAMES, PAIR = 64, 8, 2  # pixels; frames of a video, and of a visual token
DIRECTIONS = ("left", "right", "up", "down", "stays")
_STEPS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0), "stays": (0, 0)}
_RADII = range(5, 8)  # of shapes, pixels
_DOT_RADIUS = 3
_LANE = SIDE // 2  # height of the strip in which a shape moves, pixels


@dataclass(frozen=True)
class Mover:
    """A coloured shape, and which way it moves: one of `DIRECTIONS`."""

    kind: str
    colour: str
    way: str


@dataclass(frozen=True)
class Clip:
    """A short video and its content.

    Attributes:
        frames: uint8 array (8, 64, 64, 3), RGB.
        movers: the shapes, of different colours and kinds.
        dot: colour of the dot.
        appears: the first frame that shows it, counted from 1.
        labels: int8 array (4, 5, 8, 8), those of `drawing.LABELS` for every two frames.
        changes: int8 array (4, 8, 8), per visual token 0 without an object, 1 to 5 the index of what is there in
            `DIRECTIONS`, 6 a dot in both frames, 7 a dot in the second one only.
    """

    frames: np.ndarray
    movers: tuple[Mover, ...]
    dot: str
    appears: int
    labels: np.ndarray
    changes: np.ndarray

    @property
    def image(self) -> np.ndarray:
        """The frames."""
        return self.frames


N_CHANGES = len(DIRECTIONS) + 3


def _path(rng: np.random.Generator, mover: Mover, lane: int, across: bool, side: int) -> np.ndarray:
    """Top left corners (y, x) of a shape in each frame, int (8, 2).

    Args:
        rng: draws where it starts and how fast it is.
        mover: the shape.
        lane: index of its strip.
        across: whether strips are rows of the picture.
        side: of the shape's mask, pixels.
    """
    speed = rng.uniform(2.5, 4) if mover.way != "stays" else 0.0
    way = np.array(_STEPS[mover.way])
    along = rng.uniform(0, SIDE - side - speed * (FRAMES - 1))
    if way.sum() < 0:
        along = SIDE - side - along
    start = np.array([lane * _LANE + rng.uniform(0, _LANE - side), along])
    return (start[:: 1 if across else -1] + np.arange(FRAMES)[:, None] * speed * way).round().astype(int)


def _merged(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The labels of two frames together, int8 (5, 8, 8): those of the second where it shows an object."""
    shown = np.where(first[1] > 0, first, np.minimum(first, second))
    return np.where(second[1] > 0, second, shown)


def draw_clip(seed: int) -> Clip:
    """Draw the short video of a seed; `scenes.SEEDS` says which split it belongs to."""
    rng = np.random.default_rng((seed, 4))
    canvas = PagePainter(rng, SIDE, SIDE).canvas if rng.random() < 0.5 else background(rng, SIDE, SIDE)
    across = bool(rng.random() < 0.5)
    ways = ("left", "right", "stays") if across else ("up", "down", "stays")
    n = 1 + int(rng.random() < 0.6)
    colours = [COLOUR_NAMES[i] for i in rng.permutation(len(COLOUR_NAMES)) if COLOUR_NAMES[i] != "white"]
    kinds = [SHAPES[i] for i in rng.permutation(len(SHAPES))]
    movers = tuple(Mover(kinds[i], colours[i], ways[rng.choice(3, p=(0.4, 0.4, 0.2))]) for i in range(n))
    dot, appears = colours[n], int(rng.integers(1, FRAMES + 1))
    masks = [shape_mask(mover.kind, int(rng.choice(_RADII))) for mover in movers]
    lanes = rng.permutation(2).tolist()
    paths = [_path(rng, m, lanes[i], across, len(masks[i])) for i, m in enumerate(movers)]
    dot_mask = shape_mask("circle", _DOT_RADIUS)
    dot_y, dot_x = rng.integers(0, SIDE - len(dot_mask) + 1, 2).tolist()

    painters = [Painter(rng, SIDE, SIDE, canvas.copy()) for _ in range(FRAMES)]
    shades = [painters[0].jittered(colour) for colour in colours[: n + 1]]
    for i, painter in enumerate(painters):
        for mover, mask, path, shade in zip(movers, masks, paths, shades, strict=False):
            y, x = path[i].tolist()
            painter.object(mask, y, x, shade, mover.kind, mover.colour)
        if i + 1 >= appears:
            painter.object(dot_mask, dot_y, dot_x, shades[n], "dot", dot)
    frames = np.stack([painter.image() for painter in painters])
    labels = np.stack([_merged(a.labels, b.labels) for a, b in zip(painters[::PAIR], painters[1::PAIR], strict=True)])
    changes = np.zeros_like(labels[:, 0])
    for mover in movers:
        changes[labels[:, 0] == COLOUR_NAMES.index(mover.colour) + 1] = DIRECTIONS.index(mover.way) + 1
    second_only = (np.arange(FRAMES // PAIR) * PAIR + 2 == appears)[:, None, None]
    dots = labels[:, 0] == COLOUR_NAMES.index(dot) + 1
    return Clip(frames, movers, dot, appears, labels, np.where(dots, 6 + second_only, changes).astype(np.int8))
