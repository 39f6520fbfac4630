"""LLaVA-PruMerge: outliers of CLS attention, each with the tokens most like it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import topk_select
from ..validate import whole
from .base import Policy, register
from .merging import mergeable, with_merged
from .spacing import filled, others
from .types import EncoderSpec, Selection, VisualTokens


@register("prumerge")
@dataclass
class PruMerge(Policy):
    """Adaptive selection and supplement (arXiv:2403.15388, sections 3.2 and 3.3).

    Tokens whose CLS attention in the encoder's last layer (one softmax over full-width queries and keys)
    is an outlier by the interquartile range stay; each adds the `cluster` tokens whose keys are most
    like its own, weighted by their attention; one more token is the weighted sum of all that left.
    A budget takes the place of the outliers' number. Merged tokens keep their places (the release
    orders them by attention), the last one that of the most attended token that left. Encoders without
    CLS use the attention that tokens receive from all.

    Args:
        cluster: tokens that each kept one adds.
    """

    cluster: int = 32
    needs: ClassVar[frozenset[str]] = frozenset({"encoder_attention"})
    adaptive: ClassVar[bool] = True
    paper: ClassVar[str] = "LLaVA-PruMerge, ICCV 2025, arXiv:2403.15388"
    keeps: ClassVar[str] = "outliers of CLS attention, each with the tokens most like it"
    deviates: ClassVar[str] = "output in raster order; a budget may replace the number of outliers"

    def __post_init__(self) -> None:
        whole(self, "cluster")

    def encoder(self) -> EncoderSpec:
        return EncoderSpec(layer="last", rows="cls", joined_heads=True, keys="joined", features=True)

    def select(self, tokens: VisualTokens, n_keep: int | None) -> Selection:
        attention, n = tokens.encoder_attention, len(tokens)
        assert attention is not None and tokens.encoder_keys is not None
        kept = self._kept(attention, n_keep)
        features, project = mergeable(tokens)
        weight = attention.to(features.dtype)
        keys = F.normalize(tokens.encoder_keys.float(), dim=-1)

        near = keys[kept] @ keys.T
        near[torch.arange(len(kept), device=near.device), kept] = -torch.inf  # others only
        members = near.topk(min(self.cluster, n - 1)).indices
        merged = features[kept] + (weight[members][..., None] * features[members]).sum(1)
        if n_keep == 1 or len(kept) == n:
            return with_merged(tokens, kept[:0], kept, project(merged))
        rest = others(kept, n)
        extra = (weight[rest][:, None] * features[rest]).sum(0, keepdim=True)
        places = torch.cat([kept, rest[weight[rest].argmax(0, keepdim=True)]])
        return with_merged(tokens, places[:0], places, project(torch.cat([merged, extra])))

    def _kept(self, attention: Tensor, n_keep: int | None) -> Tensor:
        """The tokens that stay, without the one that stands for those that leave."""
        if n_keep is None:
            return topk_select(attention, self._outliers(attention))
        return topk_select(attention, max(1, n_keep - 1))

    @staticmethod
    def _outliers(attention: Tensor) -> int:
        low, high = attention.float().quantile(torch.tensor([0.25, 0.75], device=attention.device))
        return max(1, int((attention > high + 1.5 * (high - low)).sum()))


@register("prumerge_plus")
@dataclass
class PruMergePlus(PruMerge):
    """PruMerge, and tokens evenly spaced over the picture beside the outliers (arXiv:2403.15388, section 3.4).

    Three spaced tokens for each outlier, as in the release; with a budget, a quarter of it by attention
    and the rest evenly spaced among the others.
    """

    paper: ClassVar[str] = "LLaVA-PruMerge+, ICCV 2025, arXiv:2403.15388"
    keeps: ClassVar[str] = "the same, and evenly spaced tokens"
    deviates: ClassVar[str] = "with a budget, a quarter by attention and the rest spaced"

    def _kept(self, attention: Tensor, n_keep: int | None) -> Tensor:
        n = len(attention)
        if n_keep is not None:
            total = max(1, n_keep - 1)
            return filled(topk_select(attention, max(1, total // 4)), n, total)
        kept = torch.zeros(n, dtype=torch.bool, device=attention.device)
        outliers = self._outliers(attention)
        kept[topk_select(attention, outliers)] = True
        kept[:: max(1, int(n / outliers / 3))] = True
        return kept.nonzero()[:, 0]
