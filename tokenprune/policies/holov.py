"""HoloV: every part of the picture gets its share."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import topk_select
from ..validate import real, whole
from .base import Policy, register
from .quota import shares
from .types import EncoderSpec, Selection, VisualTokens


@register("holov")
@dataclass
class HoloV(Policy):
    """Holistic context by crops (arXiv:2510.02912, section 4).

    The raster sequence is cut into equal parts. A token's score is its CLS attention (encoder layer that
    feeds the projector) plus `alpha` times the variance of its cosines with the rest of its part, both
    scaled to mean one over the picture. A part's quota is proportional to its mean score; within it the
    best-scored tokens stay. The release ranks within parts by attention alone and leaves its output
    unsorted; we follow the paper. Its re-reading of dropped tokens in the decoder is not here.

    Args:
        parts: of the picture.
        alpha: weight of the variance.
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

    def encoder(self) -> EncoderSpec:
        return EncoderSpec(layer="feature", rows="cls")

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        attention, n = tokens.encoder_attention, len(tokens)
        assert attention is not None
        unit = F.normalize(tokens.features.float(), dim=-1)
        borders = [n * i // min(self.parts, n) for i in range(min(self.parts, n) + 1)]
        sizes = [b - a for a, b in itertools.pairwise(borders)]
        varied = torch.cat([self._variance(part) for part in unit.split(sizes)])
        score = attention.float() / attention.float().mean().clamp(min=1e-12)
        score = score + self.alpha * varied / varied.mean().clamp(min=1e-12)
        pieces = score.split(sizes)
        quotas = shares(torch.stack([piece.mean() for piece in pieces]), sizes, n_keep)
        kept = [
            topk_select(piece, quota) + start
            for piece, quota, start in zip(pieces, quotas, borders, strict=False)
            if quota
        ]
        return Selection(torch.cat(kept))

    @staticmethod
    def _variance(unit: Tensor) -> Tensor:
        """Of each token's cosines with the others, (M,)."""
        m = len(unit)
        if m < 3:
            return unit.new_zeros(m)
        # in rows of m + 1 from the second element on, the diagonal is the last column
        others = (unit @ unit.T).flatten()[1:].view(m - 1, m + 1)[:, :-1]
        return others.reshape(m, m - 1).var(1, correction=0)
