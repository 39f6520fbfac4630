"""FoPru: keep the tokens that the vision encoder's own tokens attend to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from ..budget import spread
from ..ops import topk_select
from ..validate import boolean, choice
from .base import Policy, register
from .types import EncoderSpec, Selection, VisualTokens


@register("fopru")
@dataclass
class FoPru(Policy):
    """Attention-based token significance, ranked or by rows (arXiv:2411.14164).

    A token's significance is the attention it receives in the encoder layer that feeds the projector
    (LLaVA: the last but one), averaged over heads and over the tokens that give it. `"rank"` keeps
    the most significant tokens; `"row"` keeps whole rows of the raster, by the sum of their tokens,
    so its count is a multiple of the width (the nearest one, at least one row). Survivors stay in
    their original order; ties go to the lowest index.

    No code of the authors is public and the paper's equations were not available to us: layer, head
    mean and the CLS token's place among the givers are our reading.

    Args:
        strategy: `"rank"` or `"row"`.
        include_cls_query: whether attention given by the CLS token counts, where there is one.
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

    def encoder(self) -> EncoderSpec:
        return EncoderSpec(layer="feature", rows="received", cls_query=self.include_cls_query)

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        scores = tokens.encoder_attention
        assert scores is not None  # the engine gives it or raises
        if self.strategy == "rank":
            return Selection(topk_select(scores, n_keep))
        if tokens.grids is None:
            raise ValueError(
                "strategy='row' needs the raster of the image, which is unknown for this input (a part of it is hidden "
                "or left in the vision tower); use strategy='rank'"
            )
        sizes = [t * h * w for t, h, w in tokens.grids]
        kept, start = [], 0
        for (t, h, w), size, k in zip(tokens.grids, sizes, spread(n_keep, sizes), strict=True):
            rows = min(t * h, max(1, round(k / w)))
            best = topk_select(scores[start : start + size].view(t * h, w).sum(1), rows)
            kept.append((best[:, None] * w + torch.arange(w, device=best.device)).flatten() + start)
            start += size
        return Selection(torch.cat(kept))
