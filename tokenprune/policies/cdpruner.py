"""CDPruner: tokens that are diverse given the question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..ops import dpp_select
from ..validate import real
from .base import Policy, register
from .greedy import greedy_selections
from .relevance import between_zero_and_one, likeness
from .types import Selection, VisualTokens


@register("cdpruner")
@dataclass
class CDPruner(Policy):
    """Conditional diversity by a determinantal point process (arXiv:2506.10967, sections 3.2 and 3.3).

    The kernel is cosine similarity of projected tokens, scaled on both sides by each token's relevance to
    the question, brought to [0, 1] image by image; tokens are added greedily by the volume they add.

    The paper takes relevance from CLIP's text encoder (with its sign turned, since patches and captions
    are anti-aligned there), and from the language model's embeddings on models without one. Checkpoints
    carry no CLIP text encoder: here it is the mean cosine of the question's word embeddings with the
    token, always. Without a question all tokens are as relevant.

    Args:
        weight: exponent of the relevance; 1 is the paper's, 0 leaves diversity alone.
    """

    weight: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    paper: ClassVar[str] = "CDPruner, NeurIPS 2025, arXiv:2506.10967"
    keeps: ClassVar[str] = "diverse tokens, given the question (DPP)"
    deviates: ClassVar[str] = "relevance from word embeddings, not CLIP's text encoder; scaled by image"

    def __post_init__(self) -> None:
        real(self, "weight", least=0)

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        return self.select_many([tokens], [n_keep])[0]

    def select_many(self, tokens: Sequence[VisualTokens], n_keep: Sequence[int]) -> list[Selection]:
        return greedy_selections(dpp_select, tokens, n_keep, quality=[self.relevance(each) for each in tokens])

    def relevance(self, tokens: VisualTokens) -> Tensor:
        """(N,) float32 in (0, 1]."""
        words = likeness(tokens)
        if len(words) == 0:
            return torch.ones(len(tokens), device=words.device)
        return (between_zero_and_one(words.mean(0)) + 1e-6) ** self.weight
