"""SCOPE: tokens that cover the image, attended ones first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ..ops import token_coverage_select
from ..validate import boolean, real
from .base import Policy
from .merging import mergeable
from .presets import LLAVA_7B, Preset, presets_of
from .registration import register
from .types import EncoderSpec, Selection, VisualTokens


@register("scope")
@dataclass
class Scope(Policy):
    """Saliency-coverage oriented pruning (SCOPE, arXiv:2510.24214, section 3).

    1. A set of tokens covers a token by the largest cosine similarity with it, before the projector where tokens
       there match the projected ones one-to-one.
    2. Tokens are added greedily. Each time it is the one with the largest gain in coverage, summed over all tokens,
       times its saliency.
    3. Saliency is the attention of the CLS token in the encoder layer that feeds the projector, to the power of
       `alpha`. Encoders without a CLS token use the attention that tokens receive from all tokens.

    Args:
        alpha: exponent of the attention, >= 0; 0 is coverage alone.
        per_tile: whether the budget of a picture in tiles is split over them, and each is selected from alone, as the
            paper's code does. Tiles are known on LLaVA-NeXT.
    """

    alpha: float = 1.0
    per_tile: bool = False
    needs: ClassVar[frozenset[str]] = frozenset({"encoder_attention"})
    paper: ClassVar[str] = "SCOPE, NeurIPS 2025, arXiv:2510.24214"
    keeps: ClassVar[str] = "tokens that cover the picture, attended ones first"
    deviates: ClassVar[str] = "one budget for all tiles of a picture (`per_tile`)"
    presets: ClassVar[Mapping[str, Preset]] = presets_of("paper", 192, 128, 64, table="main table", model=LLAVA_7B)

    def __post_init__(self) -> None:
        real(self, "alpha", least=0)
        boolean(self, "per_tile")

    @property
    def by_tile(self) -> bool:
        return self.per_tile

    def encoder_spec(self) -> EncoderSpec:
        return EncoderSpec(layer="feature", rows="cls", features=True)

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        assert tokens.encoder_attention is not None
        saliency = tokens.encoder_attention.float() ** self.alpha
        picks = token_coverage_select(mergeable(tokens)[0][None], n_keep, saliency[None])[0]
        return Selection(picks.sort().values)
