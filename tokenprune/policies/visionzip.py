"""VisionZip: tokens that the CLS token attends to, and averages of the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from ..ops import topk_select
from ..validate import boolean, real
from .base import Policy
from .merging import group_sum, mergeable, with_merged
from .presets import LLAVA_7B, Preset
from .registration import register
from .spacing import complement
from .types import EncoderSpec, Selection, VisualTokens


@register("visionzip")
@dataclass
class VisionZip(Policy):
    """Dominant and contextual tokens (VisionZip, arXiv:2412.04467, sections 3.2 and 3.3).

    1. Dominant tokens: those with most CLS attention in the encoder layer that feeds the projector stay.
    2. Of the rest, evenly spaced tokens are targets. Every other token joins the target with the most similar key
       (mean over heads, cosine similarity).
    3. Contextual tokens: a target becomes itself plus the mean of the tokens that joined it.

    Other than in the paper's code, the CLS token itself is not kept, since the language model has no column for it,
    and contextual tokens stay at the positions of their targets instead of at the end. Encoders without a CLS token
    use the attention that tokens receive from all tokens. Keys are those that the attention function gets; in Qwen's
    encoders they are rotated.

    Args:
        contextual: share of the budget for contextual tokens, in [0, 1); 10 of 64 in the paper.
        per_tile: whether the budget of a picture in tiles is split over them, and each is selected from alone, as the
            paper's code does. Tiles are known on LLaVA-NeXT.
    """

    contextual: float = 10 / 64
    per_tile: bool = False
    needs: ClassVar[frozenset[str]] = frozenset({"encoder_attention"})
    paper: ClassVar[str] = "VisionZip, CVPR 2025, arXiv:2412.04467"
    keeps: ClassVar[str] = "what CLS attends to, and averages of the rest"
    deviates: ClassVar[str] = (
        "CLS itself is not kept; merged tokens keep the positions of their targets; one budget for all tiles of a "
        "picture (`per_tile`)"
    )
    presets: ClassVar[Mapping[str, Preset]] = {
        f"paper-{n}": Preset(  # CLS is one of the paper's tokens
            n - 1,
            {"contextual": contextual / (n - 1)},
            table="main table",
            model=LLAVA_7B,
            mean=n - 1,
        )
        for n, contextual in ((192, 30), (128, 20), (64, 10))
    }

    def __post_init__(self) -> None:
        real(self, "contextual", least=0, below=1, what="a share of the budget")
        boolean(self, "per_tile")

    @property
    def by_tile(self) -> bool:
        return self.per_tile

    def encoder_spec(self) -> EncoderSpec:
        return EncoderSpec(layer="feature", rows="cls", keys="mean", features=True)

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        assert tokens.encoder_attention is not None and tokens.encoder_keys is not None
        n_merged = min(round(self.contextual * n_keep), n_keep - 1)
        dominant = topk_select(tokens.encoder_attention, n_keep - n_merged)
        if n_merged == 0:
            return Selection(dominant)
        rest = complement(dominant, len(tokens))
        spaced = torch.arange(n_merged, device=rest.device) * (len(rest) // n_merged)
        targets, joining = rest[spaced], rest[complement(spaced, len(rest))]

        features, project = mergeable(tokens)
        keys = F.normalize(tokens.encoder_keys.float(), dim=-1)
        joined = (keys[joining] @ keys[targets].T).argmax(1)
        # By token, so that no features are copied: those that join none are in a group of their own.
        group = torch.full_like(tokens.encoder_attention, n_merged, dtype=torch.int64).index_copy_(0, joining, joined)
        total, count = group_sum(features, group, n_merged)
        return with_merged(tokens, dominant, targets, project(features[targets] + total / count.clamp(min=1)))
