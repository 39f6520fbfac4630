"""VisionZip: tokens that CLS attends to, and averages of the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from ..ops import topk_select
from ..validate import real
from .base import Policy, register
from .merging import mergeable, summed, with_merged
from .spacing import others
from .types import EncoderSpec, Selection, VisualTokens


@register("visionzip")
@dataclass
class VisionZip(Policy):
    """Dominant tokens by CLS attention, contextual ones by merging (arXiv:2412.04467, sections 3.2 and 3.3).

    Dominant: the most attended tokens of the encoder layer that feeds the projector. Of the rest, evenly
    spaced ones are targets; every other token joins the target whose key (mean over heads) is most like
    its own, and a target becomes itself plus the mean of those that joined it.

    Other than in the release, CLS itself is not kept, since the language model has no place for it, and
    merged tokens stand where their targets stood instead of at the end. Encoders without CLS use the
    attention that tokens receive from all. Keys are those that the kernel gets: rotated in Qwen's towers.

    Args:
        contextual: share of the budget for merged tokens; 10 of 64 in the paper.
    """

    contextual: float = 10 / 64
    needs: ClassVar[frozenset[str]] = frozenset({"encoder_attention"})
    paper: ClassVar[str] = "VisionZip, CVPR 2025, arXiv:2412.04467"
    keeps: ClassVar[str] = "what CLS attends to, and averages of the rest"
    deviates: ClassVar[str] = "CLS itself is not kept; merged tokens stand where their targets stood"

    def __post_init__(self) -> None:
        real(self, "contextual", least=0, below=1, what="a share of the budget")

    def encoder(self) -> EncoderSpec:
        return EncoderSpec(layer="feature", rows="cls", keys="mean", features=True)

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        assert tokens.encoder_attention is not None and tokens.encoder_keys is not None
        n_merged = min(round(self.contextual * n_keep), n_keep - 1)
        dominant = topk_select(tokens.encoder_attention, n_keep - n_merged)
        if n_merged == 0:
            return Selection(dominant)
        rest = others(dominant, len(tokens))
        spaced = torch.arange(n_merged, device=rest.device) * (len(rest) // n_merged)
        targets, joining = rest[spaced], rest[others(spaced, len(rest))]

        features, project = mergeable(tokens)
        keys = F.normalize(tokens.encoder_keys.float(), dim=-1)
        joined = (keys[joining] @ keys[targets].T).argmax(1)
        total, count = summed(features[joining], joined, n_merged)
        return with_merged(tokens, dominant, targets, project(features[targets] + total / count.clamp(min=1)))
