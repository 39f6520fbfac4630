"""MMTok: tokens that cover both the question's words and the picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from ..ops import coverage_select
from ..validate import real
from .base import Policy, register
from .merging import mergeable
from .relevance import likeness
from .types import EncoderSpec, Selection, VisualTokens


@register("mmtok")
@dataclass
class MMTok(Policy):
    """Multimodal coverage maximisation (arXiv:2508.18264, section 3).

    Cosines of each word with all tokens, and of each token with all tokens, become distributions by a
    softmax. Greedily chosen tokens are to cover, by the largest value among them, every word and every
    token: the mean over words plus `alpha` times the mean over tokens. Words are compared with projected
    tokens, tokens with each other before the projector where they are one-to-one.

    The paper's temperatures and weight could not be confirmed; these are as second-hand accounts have
    them for LLaVA. It can have a language model rewrite the question first, which is not done here.

    Args:
        text_temperature: of the softmax from words to tokens.
        vision_temperature: of that from tokens to tokens.
        alpha: weight of covering the picture.
    """

    text_temperature: float = 0.02
    vision_temperature: float = 0.2
    alpha: float = 0.5
    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    paper: ClassVar[str] = "MMTok, ICLR 2026, arXiv:2508.18264"
    keeps: ClassVar[str] = "tokens that cover the question's words and the picture"
    deviates: ClassVar[str] = "temperatures at second hand; the question is not rewritten"

    def __post_init__(self) -> None:
        real(self, "text_temperature", "vision_temperature", above=0)
        real(self, "alpha", least=0)

    def encoder(self) -> EncoderSpec:
        return EncoderSpec(rows=None, features=True)

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        unit = F.normalize(mergeable(tokens)[0].float(), dim=-1)
        targets = [self.alpha / len(unit) * ((unit @ unit.T) / self.vision_temperature).softmax(-1)]
        words = likeness(tokens)
        if len(words):
            targets.append((words / self.text_temperature).softmax(-1) / len(words))
        picks = coverage_select(torch.cat(targets)[None], n_keep)[0]
        return Selection(picks.sort().values)
