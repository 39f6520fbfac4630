"""RLT: tokens of a video that change from frame to frame, told by their pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..validate import real
from .base import Policy
from .grid import Grid
from .registration import register
from .types import Selection, VisualTokens


@register("rlt")
@dataclass
class RLT(Policy):
    """Run-length tokenization of videos, before any model runs (RLT, arXiv:2411.05222, section 3.2).

    A token of a video shows a place in a few frames that follow each other.

    1. Each token is compared with the one before it in time at the same place: the mean absolute difference between
       the first frame of the earlier and the last frame of the later one.
    2. Tokens of the first frames stay, and so do all whose difference is above `threshold`. Of a run of tokens that do
       not change, the first stays.

    A budget takes the tokens of the largest differences; ties go to the earliest. One that is smaller than the tokens
    of the first frames keeps evenly spaced ones of them. Images have no frame before: without a budget they stay whole,
    and a budget keeps evenly spaced tokens.

    Args:
        threshold: in the pixel values that the vision encoder gets, >= 0; the paper's is 0.1.
    """

    threshold: float = 0.1
    stage: ClassVar[Literal["pixels"]] = "pixels"
    pixel_features: ClassVar[Literal["raw"]] = "raw"
    per_frame: ClassVar[bool] = False
    adaptive: ClassVar[bool] = True
    paper: ClassVar[str] = "RLT, NeurIPS 2024, arXiv:2411.05222"
    keeps: ClassVar[str] = "tokens of a video whose pixels changed, before the vision tower; images: a grid"
    deviates: ClassVar[str] = "no embedding of run lengths, which has to be trained; meets budgets"

    def __post_init__(self) -> None:
        real(self, "threshold", least=0)

    def select(self, tokens: VisualTokens, n_keep: int | None) -> Selection:
        t, h, w = tokens.grid or (1, 1, len(tokens))
        if n_keep is not None and (t == 1 or n_keep < h * w):
            return Grid().select(VisualTokens(tokens.features[: h * w], grids=((1, h, w),)), n_keep)
        change = self._change(tokens, t, h * w)
        if n_keep is None:
            return Selection((change > self.threshold).nonzero()[:, 0])
        order = change.argsort(descending=True, stable=True)
        return Selection(order[:n_keep].sort().values)

    @staticmethod
    def _change(tokens: VisualTokens, t: int, area: int) -> Tensor:
        """(N,) mean absolute difference to the token before, infinite in the first frames."""
        shape = tokens.pixel_shape or (1, 1, 1, tokens.features.shape[1])
        values = tokens.features.view(t, area, *shape)
        change = (values[1:, :, :, :, -1] - values[:-1, :, :, :, 0]).abs().float().mean((2, 3, 4))
        return torch.cat([change.new_full((1, area), torch.inf), change]).flatten()
