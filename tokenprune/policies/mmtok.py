"""MMTok: tokens that cover both the question's words and the image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..ops import TokenCover, token_coverage_select
from ..validate import boolean, real
from .base import Policy
from .merging import mergeable
from .presets import LLAVA_7B, Preset, presets_of
from .registration import register
from .relevance import question_similarity
from .types import EncoderSpec, Selection, VisualTokens


@register("mmtok")
@dataclass
class MMTok(Policy):
    """Multimodal coverage maximisation (MMTok, arXiv:2508.18264, section 3).

    1. Cosine similarities of each word of the question with all tokens, and of each token with all tokens, are turned
       into distributions over tokens by a softmax. Words are compared with projected tokens. Tokens are compared
       before the projector where they match the projected ones one-to-one, and by the mean of their patches before
       the merger on Qwen's models.
    2. A set of tokens covers a word, or a token, by the largest of its values in that distribution.
    3. Tokens are added greedily to maximise the mean coverage of words plus `alpha` times the mean coverage of tokens.

    The defaults are those of the paper's code for LLaVA; for Qwen2.5-VL it has `text_temperature=0.01`. That code takes
    keywords of the question, which a language model may have rewritten first, and leaves out patches that pad a picture
    to a square. A policy sees neither the question's text nor the padding, so here all words of the question and all
    tokens count. Without a question only the image is covered.

    Args:
        text_temperature: temperature of the softmax of words over tokens, > 0.
        vision_temperature: temperature of the softmax of tokens over tokens, > 0.
        alpha: weight of covering the image, >= 0.
        per_tile: whether the budget of a picture in tiles is split over them, and each is selected from alone, as the
            paper's code does. Tiles are known on LLaVA-NeXT.
    """

    text_temperature: float = 0.02
    vision_temperature: float = 0.2
    alpha: float = 0.5
    per_tile: bool = False
    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    paper: ClassVar[str] = "MMTok, ICLR 2026, arXiv:2508.18264"
    keeps: ClassVar[str] = "tokens that cover the question's words and the picture"
    deviates: ClassVar[str] = (
        "all words of the question (the release: keywords, of a question that may be rewritten); patches that pad a "
        "picture count; one budget for all tiles of a picture (`per_tile`)"
    )
    presets: ClassVar[Mapping[str, Preset]] = {
        **presets_of("paper", 192, 128, 64, table="main table", model=LLAVA_7B),
        **{
            f"qwen-{percent}": Preset(
                percent / 100,
                {"text_temperature": 0.01},
                table="table of Qwen2.5-VL",
                model="Qwen2.5-VL-7B, 28 layers",
            )
            for percent in (20, 10, 5)
        },
    }

    def __post_init__(self) -> None:
        real(self, "text_temperature", "vision_temperature", above=0)
        real(self, "alpha", least=0)
        boolean(self, "per_tile")

    @property
    def by_tile(self) -> bool:
        return self.per_tile

    def encoder_spec(self) -> EncoderSpec:
        return EncoderSpec(rows=None, features=True, patches=True)

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        features, words = mergeable(tokens)[0], question_similarity(tokens)
        if tokens.encoder_features is None and tokens.encoder_patches is not None:
            features = tokens.encoder_patches
        weight = torch.full((1, len(tokens)), self.alpha / len(tokens), device=features.device)
        meant = (words / self.text_temperature).softmax(-1)[None] / len(words) if len(words) else None
        picks = token_coverage_select(
            features[None], n_keep, weight=weight, cover=TokenCover(temperature=self.vision_temperature), others=meant
        )[0]
        return Selection(picks.sort().values)
