"""VisPruner: tokens that CLS attends to, and of the rest those without a double."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import topk_select
from ..validate import real, whole
from .base import Policy, register
from .merging import mergeable
from .spacing import others
from .types import EncoderSpec, Selection, VisualTokens


@register("vispruner")
@dataclass
class VisPruner(Policy):
    """Important tokens by attention, diverse ones by removing duplicates (arXiv:2412.01818, section 3.3).

    Important: a share of the budget, by CLS attention in the encoder layer that feeds the projector. The
    rest is cut down in rounds: of every second token, those most like one of the others in between leave,
    `step` at a time, until the budget is met. Features before the projector where they are one-to-one.
    The release needs an even number of such tokens; here the odd one is in the half that may leave.
    Encoders without CLS use the attention that tokens receive from all.

    Args:
        important: share of the budget for attention; the release's default.
        step: tokens that leave in a round.
    """

    important: float = 0.5
    step: int = 8
    needs: ClassVar[frozenset[str]] = frozenset({"encoder_attention"})
    paper: ClassVar[str] = "VisPruner, ICCV 2025, arXiv:2412.01818"
    keeps: ClassVar[str] = "what CLS attends to, and of the rest what has no double"
    deviates: ClassVar[str] = "takes an odd number of tokens too"

    def __post_init__(self) -> None:
        real(self, "important", least=0, most=1, what="a share of the budget")
        whole(self, "step", least=1)

    def encoder(self) -> EncoderSpec:
        return EncoderSpec(layer="feature", rows="cls", features=True)

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        assert tokens.encoder_attention is not None
        n_important = int(self.important * n_keep)
        important = topk_select(tokens.encoder_attention, n_important)
        if n_keep == n_important:
            return Selection(important)
        rest = others(important, len(tokens))
        unit = F.normalize(mergeable(tokens)[0][rest].float(), dim=-1)
        diverse = rest[self._without_doubles(unit, n_keep - n_important)]
        return Selection(torch.cat([important, diverse]).sort().values)

    def _without_doubles(self, unit: Tensor, n_keep: int) -> Tensor:
        """Ascending indices of `n_keep` of (M, D) unit vectors."""
        similarity = unit @ unit.T
        left = torch.arange(len(unit), device=unit.device)
        while len(left) > n_keep:
            even, odd = left[::2], left[1::2]
            if len(odd) == 0:
                break
            leaving = min(self.step, len(left) - n_keep, len(even))
            doubles = topk_select(similarity[even][:, odd].amax(1), leaving)
            left = left[others(2 * doubles, len(left))]
        return left
