"""DivPrune: the subset of visual tokens with the largest minimum distance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..ops import max_min_select
from .base import Policy, register
from .greedy import greedy_selections
from .types import Selection, VisualTokens


@register("divprune")
@dataclass
class DivPrune(Policy):
    """Greedy max-min diversity on cosine distance (arXiv:2503.02175, section 3.2, Algorithm 1).

    With d(a, b) = 1 - cos(a, b) on the projected tokens, the first pick is the token farthest from
    its nearest neighbour; each further pick is the token farthest from all picked so far. Distances
    are float32 whatever the model's dtype, a token is picked once at most, ties go to the lowest
    index. The kept tokens stay in their original order. A video is selected from as a whole: tokens
    that repeat from frame to frame are the first to go.
    """

    per_frame: ClassVar[bool] = False
    paper: ClassVar[str] = "DivPrune, CVPR 2025, arXiv:2503.02175"
    keeps: ClassVar[str] = "the tokens with the largest minimum cosine distance, greedily"
    deviates: ClassVar[str] = "float32 distances; never a token twice; newline tokens are no candidates"

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        return self.select_many([tokens], [n_keep])[0]

    def select_many(self, tokens: Sequence[VisualTokens], n_keep: Sequence[int]) -> list[Selection]:
        return greedy_selections(max_min_select, tokens, n_keep)
