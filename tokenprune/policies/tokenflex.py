"""TokenFLEX: the raster of tokens is averaged down to a smaller one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from ..budget import apportion
from .base import Policy
from .merging import mergeable
from .registration import register
from .types import EncoderSpec, Selection, VisualTokens


def bins(k: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of about `k` bins in the aspect ratio of a (height, width) raster."""
    rows = min(height, k, max(round(math.sqrt(k * height / width)), math.ceil(k / width), 1))
    return rows, min(width, max(1, round(k / rows)))


def bin_centres(bins: int, length: int) -> list[int]:
    """Middle index of each bin of adaptive pooling, [floor(i n / b), ceil((i + 1) n / b))."""
    return [(i * length // bins + -(-(i + 1) * length // bins) - 1) // 2 for i in range(bins)]


@register("tokenflex")
@dataclass
class TokenFlex(Policy):
    """Adaptive average pooling of the token raster (TokenFLEX, arXiv:2504.03154, section 3.2), at inference only.

    1. The raster with the image's aspect ratio that is nearest to the budget is found. 64, 144 and 256 tokens of a
       square image are exactly 8 x 8, 12 x 12 and 16 x 16; other counts are those of the raster, and in the report.
    2. Tokens are averaged down to it: before the projector, as in the paper, where tokens there match the projected
       ones one-to-one (LLaVA, LLaVA-NeXT), after it elsewhere. Thumbnail and crops are pooled separately, and so are
       the frames of a video.
    3. A pooled token takes the position of the token in the middle of its bin.

    TokenFLEX itself trains the model for this. On a model that was not, the paper reports 7.8 points lost from 256 to
    64 tokens.
    """

    paper: ClassVar[str] = "TokenFLEX, arXiv:2504.03154"
    keeps: ClassVar[str] = "the raster, averaged down"
    deviates: ClassVar[str] = "pooling only: the paper trains for it"

    @property
    def exact(self) -> bool:
        return False

    def encoder_spec(self) -> EncoderSpec:
        return EncoderSpec(rows=None, features=True)

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        features, project = mergeable(tokens)
        shapes = [(t * h, w) for t, h, w in tokens.grids or ((1, 1, len(tokens)),)]
        sizes = [h * w for h, w in shapes]
        pooled, indices, start = [], [], 0
        for (h, w), size, k in zip(shapes, sizes, apportion(n_keep, sizes), strict=True):
            rows, columns = bins(max(1, k), h, w)
            raster = features[start : start + size].view(h, w, -1).permute(2, 0, 1)
            pooled.append(F.adaptive_avg_pool2d(raster, (rows, columns)).flatten(1).T)
            indices += [start + y * w + x for y in bin_centres(rows, h) for x in bin_centres(columns, w)]
            start += size
        kept = project(torch.cat(pooled))
        return Selection(torch.tensor(indices), kept)
