"""MMTok: tokens that cover both the question's words and the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..ops import TokenCover, token_coverage_select
from ..validate import real
from .base import Policy
from .merging import mergeable
from .registration import register
from .relevance import question_similarity
from .types import EncoderSpec, Selection, VisualTokens


@register("mmtok")
@dataclass
class MMTok(Policy):
    """Multimodal coverage maximisation (MMTok, arXiv:2508.18264, section 3).

    1. Cosine similarities of each word of the question with all tokens, and of each token with all tokens, are turned
       into distributions over tokens by a softmax. Words are compared with projected tokens; tokens are compared
       before the projector where they match the projected ones one-to-one.
    2. A set of tokens covers a word, or a token, by the largest of its values in that distribution.
    3. Tokens are added greedily to maximise the mean coverage of words plus `alpha` times the mean coverage of tokens.

    We could not confirm the paper's temperatures and weight; the defaults are what other publications report for
    LLaVA. In the paper a language model may rewrite the question first, which is not done here.

    Args:
        text_temperature: temperature of the softmax of words over tokens, > 0.
        vision_temperature: temperature of the softmax of tokens over tokens, > 0.
        alpha: weight of covering the image, >= 0.
    """

    text_temperature: float = 0.02
    vision_temperature: float = 0.2
    alpha: float = 0.5
    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    paper: ClassVar[str] = "MMTok, ICLR 2026, arXiv:2508.18264"
    keeps: ClassVar[str] = "tokens that cover the question's words and the picture"
    deviates: ClassVar[str] = "temperatures from other publications; the question is not rewritten"

    def __post_init__(self) -> None:
        real(self, "text_temperature", "vision_temperature", above=0)
        real(self, "alpha", least=0)

    def encoder_spec(self) -> EncoderSpec:
        return EncoderSpec(rows=None, features=True)

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        features, words = mergeable(tokens)[0], question_similarity(tokens)
        weight = torch.full((1, len(tokens)), self.alpha / len(tokens), device=features.device)
        meant = (words / self.text_temperature).softmax(-1)[None] / len(words) if len(words) else None
        picks = token_coverage_select(
            features[None], n_keep, weight=weight, cover=TokenCover(temperature=self.vision_temperature), others=meant
        )[0]
        return Selection(picks.sort().values)
