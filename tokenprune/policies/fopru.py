"""FoPru: tokens that the vision encoder's own tokens attend to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from ..budget import apportion
from ..ops import topk_select
from ..validate import boolean, choice
from .base import Policy
from .registration import register
from .types import EncoderSpec, Selection, VisualTokens


@register("fopru")
@dataclass
class FoPru(Policy):
    """Token significance by attention in the vision encoder (FoPru, arXiv:2411.14164).

    1. A token's significance is the attention that it receives in the encoder layer that feeds the projector (LLaVA:
       the last but one), averaged over heads and over the tokens that pay it.
    2. `"rank"` keeps the most significant tokens. `"row"` keeps the whole rows of the raster with the largest sum, as
       many as come nearest to the budget and at least one, so its count is a multiple of the width.

    Kept tokens stay in their original order. Ties go to the lowest index.

    The authors have published no code, and the paper's equations were not available to us: the layer, the mean over
    heads and whether the CLS token counts are our reading.

    Args:
        strategy: `"rank"` or `"row"`.
        include_cls_query: whether attention that the CLS token pays counts, if there is one.
    """

    strategy: Literal["rank", "row"] = "rank"
    include_cls_query: bool = True
    needs: ClassVar[frozenset[str]] = frozenset({"encoder_attention"})
    paper: ClassVar[str] = "FoPru, arXiv:2411.14164"
    keeps: ClassVar[str] = "what the vision encoder's tokens attend to, by rank or by whole rows"
    deviates: ClassVar[str] = "layer, head mean and CLS are our reading: there is no code"

    def __post_init__(self) -> None:
        choice(self, "strategy", ("rank", "row"))
        boolean(self, "include_cls_query")

    @property
    def exact(self) -> bool:
        return self.strategy == "rank"

    def encoder_spec(self) -> EncoderSpec:
        return EncoderSpec(layer="feature", rows="received", cls_query=self.include_cls_query)

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        scores = tokens.encoder_attention
        assert scores is not None  # given, since `needs` declares it
        if self.strategy == "rank":
            return Selection(topk_select(scores, n_keep))
        if tokens.grids is None:
            raise ValueError(
                "strategy='row' needs the raster of the image, which is unknown for this input (a part of it is hidden "
                "or left in the vision tower); use strategy='rank'"
            )
        sizes = [t * h * w for t, h, w in tokens.grids]
        kept, start = [], 0
        for (t, h, w), size, k in zip(tokens.grids, sizes, apportion(n_keep, sizes), strict=True):
            rows = min(t * h, max(1, round(k / w)))
            best = topk_select(scores[start : start + size].view(t * h, w).sum(1), rows)
            kept.append((best[:, None] * w + torch.arange(w, device=best.device)).flatten() + start)
            start += size
        return Selection(torch.cat(kept))
