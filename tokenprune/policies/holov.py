"""HoloV: every part of the image gets a share of the budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..budget import apportion_by_weight
from ..ops import topk_select
from ..validate import choice, real, whole
from .base import Policy
from .presets import LLAVA_7B, Preset, presets_of
from .registration import register
from .types import EncoderSpec, Selection, VisualTokens


@register("holov")
@dataclass
class HoloV(Policy):
    """Holistic context by crops (HoloV, arXiv:2510.02912, section 4).

    1. The sequence of tokens is cut into `parts` equal parts; where they cannot be equal, the first ones have a
       token more.
    2. The budget is split over the parts in proportion to their mean attention: what the CLS token pays in the encoder
       layer that feeds the projector. Shares are rounded down, and the parts of largest share get one token more each
       until the budget is met.
    3. In each part the most attended tokens stay.

    The paper adds `alpha` times the variance of a token's cosine similarities within its part to its attention. The
    paper's code scales that variance to the attention of each part and ranks by attention alone, so that neither the
    shares nor the picks depend on it. That is the default, `alpha=0`. With another `alpha`, attention and variance are
    both scaled to a mean of one over the image, and their weighted sum decides shares and picks, as in the paper.

    A share can be larger than its part. By default what its part cannot take is not used, and fewer tokens stay than
    the budget allows. These are the picks of the paper's code, which fills up with tokens of zeros: they cost as much
    as real tokens and carry nothing. `surplus="zeros"` does the same, in the places of tokens that would come next.
    With `surplus="shared"` these tokens stay as they are: what is left is split among the other parts, in proportion
    to their shares, so that the budget is met.

    The paper's code does not sort its output; here it is in raster order. The paper's second step, reading dropped
    tokens again in the decoder, is not implemented. Encoders without a CLS token use the attention that tokens receive
    from all tokens.

    Args:
        parts: number of parts, >= 1. The paper's code for Qwen takes `int(1024 / 576 * N / n_keep)`.
        alpha: weight of the variance, >= 0; the paper has 0.09.
        surplus: what becomes of a share that its part cannot take: `"unused"`, `"shared"` or `"zeros"`.
    """

    parts: int = 16
    alpha: float = 0.0
    surplus: Literal["unused", "shared", "zeros"] = "unused"
    needs: ClassVar[frozenset[str]] = frozenset({"encoder_attention"})
    paper: ClassVar[str] = "HoloV, NeurIPS 2025, arXiv:2510.02912"
    keeps: ClassVar[str] = "in every part of the picture what is attended, by quota"
    deviates: ClassVar[str] = (
        "attention alone decides, as in the release (`alpha`); no tokens of zeros for what a full part cannot take, so "
        "that fewer tokens stay (`surplus`); in raster order; no re-reading in the decoder"
    )
    presets: ClassVar[Mapping[str, Preset]] = presets_of("paper", 192, 128, 64, table="Table 1", model=LLAVA_7B)

    def __post_init__(self) -> None:
        whole(self, "parts", least=1)
        real(self, "alpha", least=0)
        choice(self, "surplus", ("unused", "shared", "zeros"))

    @property
    def exact(self) -> bool:
        """False if what a part cannot take is not used."""
        return self.surplus != "unused"

    def encoder_spec(self) -> EncoderSpec:
        return EncoderSpec(layer="feature", rows="cls")

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        assert tokens.encoder_attention is not None
        score, n = tokens.encoder_attention.float(), len(tokens)
        parts = min(self.parts, n)
        sizes = [n // parts + (i < n % parts) for i in range(parts)]
        if self.alpha > 0:
            unit = F.normalize(tokens.features.float(), dim=-1)
            variance = torch.cat([self._variance(part) for part in unit.split(sizes)])
            score = score / score.mean().clamp(min=1e-12)
            score = score + self.alpha * variance / variance.mean().clamp(min=1e-12)
        scores = score.split(sizes)
        shares, more = self._shares(n_keep, sizes, torch.stack([part.mean() for part in scores]).tolist())
        kept = self._best(scores, shares)
        if self.surplus == "unused" or not any(more):
            return Selection(kept)
        filled = self._best(scores, [share + extra for share, extra in zip(shares, more, strict=True)])
        if self.surplus == "shared":
            return Selection(filled)
        real = torch.isin(filled, kept)
        return Selection(filled, torch.where(real[:, None], tokens.features[filled], 0))

    @staticmethod
    def _best(scores: Sequence[Tensor], shares: Sequence[int]) -> Tensor:
        """Ascending int64 indices of the tokens with the largest scores of each part, as many as its share."""
        starts = itertools.accumulate((len(part) for part in scores), initial=0)
        parts = zip(scores, shares, starts, strict=False)
        return torch.cat([topk_select(part, share) + start for part, share, start in parts if share])

    @staticmethod
    def _shares(n_keep: int, sizes: list[int], weights: list[float]) -> tuple[list[int], list[int]]:
        """(P,) tokens of each part, from the parts' sizes and weights, and (P,) more of them that fill the budget."""
        total = sum(weights)
        quotas = [n_keep * weight / total if total > 0 else n_keep / len(weights) for weight in weights]
        shares = [math.floor(quota) for quota in quotas]
        by_weight = sorted(range(len(sizes)), key=lambda i: (-weights[i], i))
        for i in by_weight[: n_keep - sum(shares)]:
            shares[i] += 1
        shares = [min(share, size) for share, size in zip(shares, sizes, strict=True)]
        room = [size - share for size, share in zip(sizes, shares, strict=True)]
        return shares, apportion_by_weight(n_keep - sum(shares), room, weights)

    @staticmethod
    def _variance(unit: Tensor) -> Tensor:
        """(M,) variance of each token's cosine similarities with the others, from (M, D) unit vectors."""
        m = len(unit)
        if m < 3:
            return unit.new_zeros(m)
        # In rows of m + 1 from the second element on, the diagonal is the last column.
        to_others = (unit @ unit.T).flatten()[1:].view(m - 1, m + 1)[:, :-1]
        return to_others.reshape(m, m - 1).var(1, correction=0)
