"""CDPruner: tokens that are diverse and relevant to the question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..ops import dpp_select
from ..validate import boolean, real
from .base import BatchedPolicy
from .greedy import greedy_selections
from .presets import LLAVA_7B, Preset, presets_of
from .registration import register
from .relevance import between_zero_and_one, question_similarity
from .types import Selection, VisualTokens


@register("cdpruner")
@dataclass
class CDPruner(BatchedPolicy):
    """Conditional diversity by a determinantal point process (CDPruner, arXiv:2506.10967, sections 3.2 and 3.3).

    1. Relevance: the mean cosine similarity of the question's word embeddings with each token, scaled to [0, 1] for
       each image, to the power of `weight`. Without a question all tokens are equally relevant.
    2. Kernel: cosine similarity of projected tokens, multiplied by the relevance of both.
    3. Tokens are added greedily, each time the one that increases the determinant of the kernel most. Once no token
       increases it (the picks span all tokens, which happens when more are kept than the features have dimensions, or
       when all others repeat picks), the rest of the budget is spread evenly over the tokens that are left, whatever
       their relevance.

    The paper takes relevance from CLIP's text encoder (with the sign turned, since patches and captions are
    anti-aligned there), and from the language model's embeddings on models without one. Checkpoints do not contain
    CLIP's text encoder, so word embeddings are used on all models.

    Args:
        weight: exponent of the relevance, >= 0. 1 is the paper's; 0 is diversity alone.
        per_tile: whether the budget of a picture in tiles is split over them, and each is selected from alone, as the
            paper's code does. Tiles are known on LLaVA-NeXT.
    """

    weight: float = 1.0
    per_tile: bool = False
    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    paper: ClassVar[str] = "CDPruner, NeurIPS 2025, arXiv:2506.10967"
    keeps: ClassVar[str] = "diverse tokens, given the question (DPP)"
    deviates: ClassVar[str] = (
        "relevance from word embeddings, not CLIP's text encoder, scaled by picture (the release: by batch); spread "
        "evenly beyond the rank of the kernel; one budget for all tiles of a picture (`per_tile`), without the borders "
        "that the model cuts away (the release keeps them)"
    )
    presets: ClassVar[Mapping[str, Preset]] = presets_of("paper", 192, 128, 64, table="main table", model=LLAVA_7B)

    def __post_init__(self) -> None:
        real(self, "weight", least=0)
        boolean(self, "per_tile")

    @property
    def by_tile(self) -> bool:
        return self.per_tile

    def select_many(self, tokens: Sequence[VisualTokens], n_keep: Sequence[int]) -> list[Selection]:
        return greedy_selections(dpp_select, tokens, n_keep, quality=[self.relevance(each) for each in tokens])

    def relevance(self, tokens: VisualTokens) -> Tensor:
        """(N,) float32, > 0."""
        words = question_similarity(tokens)
        if len(words) == 0:
            return torch.ones(len(tokens), device=words.device)
        return (between_zero_and_one(words.mean(0)) + 1e-6) ** self.weight
