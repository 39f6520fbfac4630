"""TokenFLEX: average the raster of tokens down to any size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from ..budget import spread
from .base import Policy, register
from .merging import mergeable
from .types import EncoderSpec, Selection, VisualTokens


def bins(k: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of about k bins in the picture's shape."""
    rows = min(height, k, max(round(math.sqrt(k * height / width)), math.ceil(k / width), 1))
    return rows, min(width, max(1, round(k / rows)))


def bin_centres(bins: int, length: int) -> list[int]:
    """Middle of each adaptive-pooling bin, [floor(i n / b), ceil((i + 1) n / b))."""
    return [(i * length // bins + -(-(i + 1) * length // bins) - 1) // 2 for i in range(bins)]


@register("tokenflex")
@dataclass
class TokenFlex(Policy):
    """Adaptive average pooling of the token raster (arXiv:2504.03154, section 3.2), at inference only.

    A raster is pooled to the grid of its own shape that is nearest to the budget: 64, 144 and 256
    tokens of a square picture are exactly 8 x 8, 12 x 12 and 16 x 16; other counts are what the grid
    has, and in the report. Pooling goes before the projector, as in the paper, where tokens before
    and after it are one-to-one (LLaVA, LLaVA-NeXT), after it otherwise; never across thumbnail and
    crops, and per frame in videos. A pooled token takes the position of the token in the middle of its
    bin. TokenFLEX itself trains for this: on a model that was not, the paper reports 7.8 points lost
    from 256 to 64 tokens.
    """

    paper: ClassVar[str] = "TokenFLEX, arXiv:2504.03154"
    keeps: ClassVar[str] = "the raster, averaged down"
    deviates: ClassVar[str] = "pooling only: the paper trains for it"

    @property
    def exact(self) -> bool:
        return False

    def encoder(self) -> EncoderSpec:
        return EncoderSpec(rows=None, features=True)

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        features, project = mergeable(tokens)
        shapes = [(t * h, w) for t, h, w in tokens.grids or ((1, 1, len(tokens)),)]
        sizes = [h * w for h, w in shapes]
        pooled, indices, start = [], [], 0
        for (h, w), size, k in zip(shapes, sizes, spread(n_keep, sizes), strict=True):
            rows, columns = bins(max(1, k), h, w)
            raster = features[start : start + size].view(h, w, -1).permute(2, 0, 1)
            pooled.append(F.adaptive_avg_pool2d(raster, (rows, columns)).flatten(1).T)
            indices += [start + y * w + x for y in bin_centres(rows, h) for x in bin_centres(columns, w)]
            start += size
        kept = project(torch.cat(pooled))
        return Selection(torch.tensor(indices), kept)
