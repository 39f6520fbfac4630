"""SCOPE: tokens that cover the picture, the attended ones first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from ..ops import coverage_select
from ..validate import real
from .base import Policy, register
from .merging import mergeable
from .types import EncoderSpec, Selection, VisualTokens


@register("scope")
@dataclass
class Scope(Policy):
    """Saliency-coverage oriented pruning (arXiv:2510.24214, section 3).

    Greedy coverage of all tokens by those kept (cosine similarity before the projector, where tokens are
    one-to-one), a candidate's gain times its CLS attention in the encoder layer that feeds the projector.
    Encoders without CLS use the attention that tokens receive from all.

    Args:
        alpha: exponent of the attention.
    """

    alpha: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset({"encoder_attention"})
    paper: ClassVar[str] = "SCOPE, NeurIPS 2025, arXiv:2510.24214"
    keeps: ClassVar[str] = "tokens that cover the picture, attended ones first"

    def __post_init__(self) -> None:
        real(self, "alpha", least=0)

    def encoder(self) -> EncoderSpec:
        return EncoderSpec(layer="feature", rows="cls", features=True)

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        assert tokens.encoder_attention is not None
        unit = F.normalize(mergeable(tokens)[0].float(), dim=-1)
        saliency = tokens.encoder_attention.float() ** self.alpha
        picks = coverage_select((unit @ unit.T)[None], n_keep, saliency[None])[0]
        return Selection(picks.sort().values)
