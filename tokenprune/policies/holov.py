"""HoloV: every part of the image gets a share of the budget."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..budget import apportion_by_weight
from ..ops import topk_select
from ..validate import real, whole
from .base import Policy
from .registration import register
from .types import EncoderSpec, Selection, VisualTokens


@register("holov")
@dataclass
class HoloV(Policy):
    """Holistic context by crops (HoloV, arXiv:2510.02912, section 4).

    1. The sequence of tokens is cut into `parts` equal parts.
    2. A token's score is the attention of the CLS token in the encoder layer that feeds the projector, plus `alpha`
       times the variance of its cosine similarities with the other tokens of its part. Both are scaled to a mean of
       one over the image.
    3. The budget is split over the parts in proportion to their mean scores.
    4. In each part the best-scored tokens stay.

    The paper's code ranks by attention alone within a part and does not sort its output; here the paper is followed.
    The paper's second step, reading dropped tokens again in the decoder, is not implemented. Encoders without a CLS
    token use the attention that tokens receive from all tokens.

    Args:
        parts: number of parts, >= 1.
        alpha: weight of the variance, >= 0.
    """

    parts: int = 16
    alpha: float = 0.09
    needs: ClassVar[frozenset[str]] = frozenset({"encoder_attention"})
    paper: ClassVar[str] = "HoloV, NeurIPS 2025, arXiv:2510.02912"
    keeps: ClassVar[str] = "in every part of the picture what is attended and varied, by quota"
    deviates: ClassVar[str] = "ranks by the whole score in a part, sorted; no re-reading in the decoder"

    def __post_init__(self) -> None:
        whole(self, "parts", least=1)
        real(self, "alpha", least=0)

    def encoder_spec(self) -> EncoderSpec:
        return EncoderSpec(layer="feature", rows="cls")

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        attention, n = tokens.encoder_attention, len(tokens)
        assert attention is not None
        unit = F.normalize(tokens.features.float(), dim=-1)
        borders = [n * i // min(self.parts, n) for i in range(min(self.parts, n) + 1)]
        sizes = [b - a for a, b in itertools.pairwise(borders)]
        variance = torch.cat([self._variance(part) for part in unit.split(sizes)])
        score = attention.float() / attention.float().mean().clamp(min=1e-12)
        score = score + self.alpha * variance / variance.mean().clamp(min=1e-12)
        scores = score.split(sizes)
        quotas = apportion_by_weight(n_keep, sizes, torch.stack([part.mean() for part in scores]).tolist())
        kept = [
            topk_select(part, quota) + start
            for part, quota, start in zip(scores, quotas, borders, strict=False)
            if quota
        ]
        return Selection(torch.cat(kept))

    @staticmethod
    def _variance(unit: Tensor) -> Tensor:
        """(M,) variance of each token's cosine similarities with the others, from (M, D) unit vectors."""
        m = len(unit)
        if m < 3:
            return unit.new_zeros(m)
        # In rows of m + 1 from the second element on, the diagonal is the last column.
        to_others = (unit @ unit.T).flatten()[1:].view(m - 1, m + 1)[:, :-1]
        return to_others.reshape(m, m - 1).var(1, correction=0)
