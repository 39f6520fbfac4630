"""LLaVA-PruMerge: outliers of CLS attention, each merged with the tokens most similar to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import topk_select
from ..validate import boolean, whole
from .base import Policy
from .merging import mergeable, with_merged
from .presets import LLAVA_7B, Preset
from .registration import register
from .spacing import complement, fill_evenly
from .types import EncoderSpec, Selection, VisualTokens


@register("prumerge")
@dataclass
class PruMerge(Policy):
    """Adaptive token selection and supplement (LLaVA-PruMerge, arXiv:2403.15388, sections 3.2 and 3.3).

    1. Tokens stay whose CLS attention in the encoder's last layer (one softmax over queries and keys of full width)
       is an outlier: more than 1.5 interquartile ranges above the third quartile. With a budget, the most attended
       tokens stay instead, one fewer than the budget.
    2. To each of them, the `cluster` tokens with the most similar keys are added, weighted by their attention.
    3. One more token is the sum of all tokens that did not stay, weighted by attention.

    Merged tokens keep their positions (the paper's code orders them by attention). The token of step 3 takes the
    position of the most attended token that did not stay. Encoders without a CLS token use the attention that tokens
    receive from all tokens.

    Args:
        cluster: how many tokens are added to each kept one, >= 0.
    """

    cluster: int = 32
    needs: ClassVar[frozenset[str]] = frozenset({"encoder_attention"})
    adaptive: ClassVar[bool] = True
    paper: ClassVar[str] = "LLaVA-PruMerge, ICCV 2025, arXiv:2403.15388"
    keeps: ClassVar[str] = "outliers of CLS attention, each merged with the tokens most similar to it"
    deviates: ClassVar[str] = (
        "output in raster order (the release: by attention, the summed token last); a budget may replace the number of "
        "outliers"
    )
    presets: ClassVar[Mapping[str, Preset]] = {"paper": Preset(None, table="main table", model=LLAVA_7B)}

    def __post_init__(self) -> None:
        whole(self, "cluster")

    def encoder_spec(self) -> EncoderSpec:
        return EncoderSpec(layer="last", rows="cls", joined_heads=True, keys="joined", features=True)

    def select(self, tokens: VisualTokens, n_keep: int | None) -> Selection:
        attention, n = tokens.encoder_attention, len(tokens)
        assert attention is not None and tokens.encoder_keys is not None
        kept = self._kept(attention, n_keep)
        features, project = mergeable(tokens)
        weight = attention.to(features.dtype)
        keys = F.normalize(tokens.encoder_keys.float(), dim=-1)

        similarity = keys[kept] @ keys.T
        similarity[torch.arange(len(kept), device=similarity.device), kept] = -torch.inf  # not the token itself
        members = similarity.topk(min(self.cluster, n - 1)).indices
        merged = features[kept] + (weight[members][..., None] * features[members]).sum(1)
        if n_keep == 1 or len(kept) == n:
            return with_merged(tokens, kept[:0], kept, project(merged))
        rest = complement(kept, n)
        extra = (weight[rest][:, None] * features[rest]).sum(0, keepdim=True)
        targets = torch.cat([kept, rest[weight[rest].argmax(0, keepdim=True)]])
        return with_merged(tokens, targets[:0], targets, project(torch.cat([merged, extra])))

    def _kept(self, attention: Tensor, n_keep: int | None) -> Tensor:
        """Ascending indices of the tokens of step 1, from (N,) attention."""
        if n_keep is None:
            return topk_select(attention, self._outliers(attention))
        return topk_select(attention, max(1, n_keep - 1))

    @staticmethod
    def _outliers(attention: Tensor) -> int:
        """How many of (N,) values are outliers, at least 1."""
        low, high = attention.float().quantile(torch.tensor([0.25, 0.75], device=attention.device))
        return max(1, int((attention > high + 1.5 * (high - low)).sum()))


@register("prumerge_plus")
@dataclass
class PruMergePlus(PruMerge):
    """PruMerge with evenly spaced tokens beside the outliers (LLaVA-PruMerge+, arXiv:2403.15388, section 3.4).

    Step 1 of `PruMerge` also keeps evenly spaced tokens of the image, three for each outlier as in the paper's code.
    With a budget, a quarter of it is kept by attention, and the rest is evenly spaced among the other tokens.

    The paper's code spaces over all tokens but the last one. Where the step would reach it (1, 5, 23, 25 and 115 do of
    576 tokens), that corner of the picture is left out. There is no reason for it, so here the last token counts too.

    Args:
        cluster: how many tokens are added to each kept one, >= 0.
        last_token: whether the last token can be one of the evenly spaced ones; False is the paper's code.
    """

    last_token: bool = True
    paper: ClassVar[str] = "LLaVA-PruMerge+, ICCV 2025, arXiv:2403.15388"
    keeps: ClassVar[str] = "the same, and evenly spaced tokens"
    deviates: ClassVar[str] = (
        "output in raster order (the release: by attention, the summed token last); with a budget, a quarter by "
        "attention and the rest spaced; spaces over the last token too (the release never; `last_token`)"
    )
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset(None, {"last_token": False}, table="main table", model=LLAVA_7B)
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        boolean(self, "last_token")

    def _kept(self, attention: Tensor, n_keep: int | None) -> Tensor:
        n = len(attention)
        if n_keep is not None:
            total = max(1, n_keep - 1)
            return fill_evenly(topk_select(attention, max(1, total // 4)), n, total)
        kept = torch.zeros(n, dtype=torch.bool, device=attention.device)
        outliers = self._outliers(attention)
        kept[topk_select(attention, outliers)] = True
        kept[: n if self.last_token else max(1, n - 1) : max(1, int(n / outliers / 3))] = True
        return kept.nonzero()[:, 0]
