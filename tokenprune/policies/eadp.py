"""EADP: tokens that cover what the informative words of the question point at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..device import to_device
from ..ops import TokenCover, token_coverage_select
from ..validate import boolean, real
from .base import Policy
from .presets import LLAVA_7B, Preset
from .registration import register
from .relevance import between_zero_and_one, question_similarity
from .types import Selection, VisualTokens


@register("eadp")
@dataclass
class EADP(Policy):
    """Entropy-aware dense pruning (EADP, arXiv:2607.02484).

    1. For each word of the question, a softmax over tokens of its similarity with them. A word with large entropy
       points at no place in particular. The `words` share of the words with the least entropy is used, averaged with
       weights from a softmax of minus the entropy.
    2. That average is mixed with the similarity of the mean word embedding (`alpha`), scaled to [0, 1], smoothed over
       neighbours in the raster (3 x 3 Gaussian), and taken to the power of `beta`. It is the importance of a token.
    3. Tokens are added greedily by how much they cover of all tokens, by (cosine similarity + 1) / 2, where each
       covered token is weighted by its importance.

    The paper compares with CLIP's text encoder on LLaVA. Its variant for Qwen uses input embeddings, as is done here
    on every model. That variant also turns the sign of similarities as with CLIP; word embeddings give no reason for
    it, so here it is an option (`inverted`). Without a question all tokens have the same importance.

    Args:
        temperature: factor of similarities in the softmax over tokens, > 0.
        words: share of the question's words that is used, in (0, 1].
        sharpness: temperature of the softmax over words, > 0.
        alpha: weight of the mean word embedding, in [0, 1]; the words have the rest.
        beta: exponent of the importance, >= 0.
        inverted: whether tokens unlike the question are the important ones.
    """

    temperature: float = 100.0
    words: float = 0.2
    sharpness: float = 0.01
    alpha: float = 0.5
    beta: float = 1.0
    inverted: bool = False
    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    paper: ClassVar[str] = "EADP, ECCV 2026, arXiv:2607.02484"
    keeps: ClassVar[str] = "tokens that cover what the informative words of the question point at"
    deviates: ClassVar[str] = (
        "word embeddings for CLIP's text encoder; tokens like the question are the important ones (the release: those "
        "unlike it; `inverted`)"
    )
    presets: ClassVar[Mapping[str, Preset]] = {
        **{
            f"paper-{n}": Preset(n, {"inverted": True}, table="main table", model=LLAVA_7B, mean=n)
            for n in (192, 128, 64)
        },
        "qwen-256": Preset(
            256,
            {"inverted": True, "beta": 2.0},
            table="the release's setting for Qwen",
            model="Qwen2.5-VL-7B, 28 layers",
            mean=256,
        ),
    }

    def __post_init__(self) -> None:
        real(self, "temperature", "sharpness", above=0)
        real(self, "words", above=0, most=1, what="a share of the words")
        real(self, "alpha", least=0, most=1)
        real(self, "beta", least=0)
        boolean(self, "inverted")

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        importance = self.importance(tokens)
        picks = token_coverage_select(tokens.features[None], n_keep, weight=importance[None], cover=TokenCover(0.5))[0]
        return Selection(picks.sort().values)

    def importance(self, tokens: VisualTokens) -> Tensor:
        """(N,) float32 in [0, 1]."""
        by_word = question_similarity(tokens)
        if len(by_word) == 0:
            return torch.ones(len(tokens), device=by_word.device)
        assert tokens.question is not None
        mean = tokens.question.float().mean(0, keepdim=True)
        of_mean = F.cosine_similarity(mean, tokens.features.float())
        if self.inverted:
            by_word, of_mean = -by_word, -of_mean
        share = (by_word * self.temperature).softmax(-1)
        entropy = -(share * (share + 1e-12).log()).sum(-1)
        least = entropy.topk(max(1, int(self.words * len(by_word))), largest=False)
        words = (-least.values / self.sharpness).softmax(0) @ by_word[least.indices]
        score = between_zero_and_one(self.alpha * of_mean + (1 - self.alpha) * words)
        return self._smooth(score, tokens) ** self.beta

    @staticmethod
    def _smooth(score: Tensor, tokens: VisualTokens) -> Tensor:
        """(N,) scores, averaged over neighbours in each raster; unchanged if it is unknown or one token thin."""
        if tokens.grids is None:
            return score
        bell = torch.exp(-torch.tensor([1.0, 0.0, 1.0]) / 2)
        kernel = to_device((bell[:, None] * bell) / (bell[:, None] * bell).sum(), score.device)
        parts, start = [], 0
        for t, h, w in tokens.grids:
            part = score[start : start + t * h * w].view(t, 1, h, w)
            if h > 1 and w > 1:
                part = F.conv2d(F.pad(part, (1, 1, 1, 1), mode="reflect"), kernel[None, None])
            parts.append(part.flatten())
            start += t * h * w
        return torch.cat(parts)
