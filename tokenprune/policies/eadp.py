"""EADP: coverage of what the question's telling words point at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..device import to_device
from ..ops import coverage_select
from ..validate import boolean, real
from .base import Policy, register
from .relevance import between_zero_and_one, likeness
from .types import Selection, VisualTokens


@register("eadp")
@dataclass
class EADP(Policy):
    """Entropy-aware dense pruning (arXiv:2607.02484).

    A word whose likeness is spread over the picture (large entropy of a softmax over tokens) is noise:
    the fifth of the words with the least entropy stay, weighted by a softmax of minus the entropy. Their
    likeness and that of the mean word embedding are averaged, scaled to [0, 1] and smoothed over
    neighbours (3 x 3 Gaussian). Tokens are added greedily by how much they cover, by (cosine + 1) / 2, of
    all tokens, each weighted by its score.

    The paper scores by CLIP's text encoder on LLaVA; its variant for Qwen works on input embeddings, as
    here on every model, but turns the sign as with CLIP, which word embeddings give no reason for
    (`inverted`). Without a question all tokens weigh the same.

    Args:
        temperature: of the softmax over tokens, as a factor.
        words: share of words that stay.
        sharpness: temperature of the weights of words.
        alpha: weight of the mean embedding beside the words.
        beta: exponent of the score.
        inverted: whether unlike tokens are the relevant ones.
    """

    temperature: float = 100.0
    words: float = 0.2
    sharpness: float = 0.01
    alpha: float = 0.5
    beta: float = 1.0
    inverted: bool = False
    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    paper: ClassVar[str] = "EADP, ECCV 2026, arXiv:2607.02484"
    keeps: ClassVar[str] = "tokens that cover what the telling words of the question point at"
    deviates: ClassVar[str] = "word embeddings for CLIP's text encoder, their sign as it is (`inverted`)"

    def __post_init__(self) -> None:
        real(self, "temperature", "sharpness", above=0)
        real(self, "words", above=0, most=1, what="a share of the words")
        real(self, "alpha", least=0, most=1)
        real(self, "beta", least=0)
        boolean(self, "inverted")

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        unit = F.normalize(tokens.features.float(), dim=-1)
        cover = (unit @ unit.T + 1) / 2 * self.importance(tokens)[:, None]
        return Selection(coverage_select(cover[None], n_keep)[0].sort().values)

    def importance(self, tokens: VisualTokens) -> Tensor:
        """(N,) float32 in [0, 1]."""
        dense = likeness(tokens)
        if len(dense) == 0:
            return torch.ones(len(tokens), device=dense.device)
        assert tokens.question is not None
        mean = tokens.question.float().mean(0, keepdim=True)
        whole = F.cosine_similarity(mean, tokens.features.float())
        if self.inverted:
            dense, whole = -dense, -whole
        share = (dense * self.temperature).softmax(-1)
        entropy = -(share * (share + 1e-12).log()).sum(-1)
        least = entropy.topk(max(1, int(self.words * len(dense))), largest=False)
        words = (-least.values / self.sharpness).softmax(0) @ dense[least.indices]
        score = between_zero_and_one(self.alpha * whole + (1 - self.alpha) * words)
        return self._smooth(score, tokens) ** self.beta

    @staticmethod
    def _smooth(score: Tensor, tokens: VisualTokens) -> Tensor:
        """Over neighbours in each raster; as it is where the raster is unknown or too thin."""
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
