"""Grid: evenly spaced tokens, the training-free cousin of looking at a smaller picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..budget import spread
from .base import Policy, register
from .spacing import even
from .types import Selection, VisualTokens


def _even_grid(k: int, height: int, width: int) -> list[int]:
    """`k` cells of a raster, evenly spaced in rows and columns; rows differ by one cell at most."""
    rows = min(height, max(round(math.sqrt(k * height / width)), math.ceil(k / width), 1))
    per_row = spread(k, [width] * rows)
    ys = even(rows, height).tolist()
    return torch.cat([y * width + even(n, width) for y, n in zip(ys, per_row, strict=True)]).tolist()


@register("grid")
@dataclass
class Grid(Policy):
    """Tokens evenly spaced in rows and columns, as many rows as the picture's shape suggests.

    An image of several rasters (thumbnail and crops) shares the budget out by size. Where the raster
    is unknown, tokens are evenly spaced in the sequence.
    """

    paper: ClassVar[str] = "baseline"
    keeps: ClassVar[str] = "tokens evenly spaced in rows and columns"

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        # A (T, H, W) raster is T*H rows: per_frame has already cut videos, so T is 1 here.
        shapes = [(t * h, w) for t, h, w in tokens.grids or ((1, 1, len(tokens)),)]
        sizes = [h * w for h, w in shapes]
        picks, start = [], 0
        for (h, w), size, k in zip(shapes, sizes, spread(n_keep, sizes), strict=True):
            picks += [start + i for i in (_even_grid(k, h, w) if k else [])]
            start += size
        return Selection(torch.tensor(picks))
