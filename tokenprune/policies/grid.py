"""Grid: evenly spaced tokens, like those of an image of lower resolution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..budget import apportion
from .base import Policy
from .registration import register
from .spacing import evenly_spaced
from .types import Selection, VisualTokens


def _evenly_spaced_cells(k: int, height: int, width: int) -> list[int]:
    """Indices of `k` cells of a raster, evenly spaced in rows and columns; rows differ by one cell at most."""
    rows = min(height, max(round(math.sqrt(k * height / width)), math.ceil(k / width), 1))
    per_row = apportion(k, [width] * rows)
    ys = evenly_spaced(rows, height).tolist()
    cells = [y * width + evenly_spaced(n, width) for y, n in zip(ys, per_row, strict=True)]
    indices: list[int] = torch.cat(cells).tolist()
    return indices


@register("grid")
@dataclass
class Grid(Policy):
    """Tokens evenly spaced in rows and columns: a baseline.

    1. The number of rows follows from the image's aspect ratio and the budget.
    2. Rows are evenly spaced in the raster, and so are the tokens of each row.

    An image of several rasters (thumbnail and crops) splits the budget by their sizes. Where the raster is unknown,
    tokens are evenly spaced in the sequence.
    """

    paper: ClassVar[str] = "baseline"
    keeps: ClassVar[str] = "tokens evenly spaced in rows and columns"

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        shapes = [(t * h, w) for t, h, w in tokens.grids or ((1, 1, len(tokens)),)]  # T is 1: videos come by frame
        sizes = [h * w for h, w in shapes]
        picks: list[int] = []
        start = 0
        for (h, w), size, k in zip(shapes, sizes, apportion(n_keep, sizes), strict=True):
            picks += [start + i for i in (_evenly_spaced_cells(k, h, w) if k else [])]
            start += size
        return Selection(torch.tensor(picks))
