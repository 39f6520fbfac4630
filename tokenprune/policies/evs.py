"""EVS: tokens that changed since the frame before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from .base import Policy
from .grid import Grid
from .registration import register
from .types import Selection, VisualTokens


@register("evs")
@dataclass
class EVS(Policy):
    """Efficient video sampling (EVS, arXiv:2510.14624).

    1. Each token of a video is scored by its cosine distance to the token at the same place one frame earlier. Tokens
       of the first frame have an infinite score.
    2. The best-scored tokens stay. Ties go to the earliest token.

    Serving engines keep one whole frame at least. Here the budget is always met: one smaller than a frame keeps evenly
    spaced tokens of the first frame. So do images, which have no frame before.
    """

    per_frame: ClassVar[bool] = False
    paper: ClassVar[str] = "EVS, arXiv:2510.14624"
    keeps: ClassVar[str] = "tokens that changed since the frame before; images: a grid"
    deviates: ClassVar[str] = "meets budgets below a frame"

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        t, h, w = tokens.grid or (1, 1, len(tokens))
        if n_keep < h * w or t == 1:
            first = VisualTokens(tokens.features[: h * w], grids=((1, h, w),) if t > 1 else tokens.grids)
            return Grid().select(first if t > 1 else tokens, n_keep)
        frames = F.normalize(tokens.features.float(), dim=-1).view(t, h * w, -1)
        change = 1 - (frames[1:] * frames[:-1]).sum(-1)
        change = torch.cat([change.new_full((1, h * w), torch.inf), change]).flatten()
        order = change.argsort(descending=True, stable=True)
        return Selection(order[:n_keep].sort().values)
