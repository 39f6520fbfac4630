"""DivPrune: the subset of visual tokens with the largest minimum distance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..ops import max_min_select
from .base import BatchedPolicy
from .greedy import greedy_selections
from .presets import LLAVA_7B, Preset
from .registration import register
from .types import Selection, VisualTokens


@register("divprune")
@dataclass
class DivPrune(BatchedPolicy):
    """Greedy max-min diversity (DivPrune, arXiv:2503.02175, section 3.2, Algorithm 1).

    The distance of two projected tokens is 1 - cos(a, b).

    1. The first pick is the token farthest from its nearest neighbour.
    2. Each further pick is the token whose nearest pick is farthest away.

    Distances are float32 whatever the model's dtype. No token is picked twice, and ties go to the lowest index. Kept
    tokens stay in their original order. A video is selected from as a whole, so that tokens which repeat from frame to
    frame are dropped first.
    """

    per_frame: ClassVar[bool] = False
    paper: ClassVar[str] = "DivPrune, CVPR 2025, arXiv:2503.02175"
    keeps: ClassVar[str] = "the tokens with the largest minimum cosine distance, greedily"
    deviates: ClassVar[str] = "float32 distances; never a token twice; newline tokens are no candidates"
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset(
            0.098,
            positions="compact",
            table="Tables 1 and 2",
            model=LLAVA_7B,
            mean=56,
        )
    }

    def select_many(self, tokens: Sequence[VisualTokens], n_keep: Sequence[int]) -> list[Selection]:
        return greedy_selections(max_min_select, tokens, n_keep)
