"""auto: tokens that the question names, then tokens unlike them; the package's default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..budget import Budget
from ..ops import max_min_select, topk_select
from ..schedule import Schedule
from ..validate import real, reals, whole
from .base import BatchedPolicy, Policy
from .greedy import greedy_selections
from .registration import register
from .relevance import question_similarity
from .scheduled import ScheduledPolicy
from .spacing import fill_evenly
from .types import DecoderView, Selection, VisualTokens


@register("auto")
@dataclass
class Auto(BatchedPolicy):
    """Max-min diversity that starts from what the question names, and a second choice inside the decoder.

    Before the language model:

    1. The similarity of each question word with each token is standardised over the tokens: minus its mean, divided
       by its standard deviation. The `words` words with the largest maximum are used.
    2. The tokens most similar to any of these words are picked first: a share `asked` of what is chosen.
    3. Then the token farthest from all picked so far is added again and again, as in DivPrune (arXiv:2503.02175,
       section 3.2), with a distance that depends on lengths as well as on directions. Without a question the first
       pick is DivPrune's.
    4. At most a share `diverse` of all tokens is chosen like this. The rest of the budget is spaced evenly among the
       other tokens. More diversity would drop what is frequent, and a model that counts by shares would overcount.

    A video is selected from as a whole. Nothing of the vision encoder is read.

    Inside the decoder, at each of `depths`, DivPrune's choice is made again among the remaining tokens, on hidden
    states, again of at most a share `diverse` of the tokens that entered. That images need fewer tokens in deeper
    layers is PyramidDrop's observation (arXiv:2410.17247), but no attention is read here. Each choice keeps the same
    ratio of the tokens before it: with `keep=0.1`, 0.56 of all tokens enter the decoder, and 0.32, 0.18 and 0.1 are
    left after the cuts. Without cuts (`depths=()`, or a model whose decoder does not allow them) the whole budget is
    met before the decoder.

    The defaults were chosen on validation questions of the embedded models: docs/bench.md.

    Args:
        asked: share of what is chosen that the question names, in [0, 1].
        words: how many words of the question are used, >= 1.
        diverse: largest share of a visual input's tokens that is chosen, in (0, 1]; the rest is spaced evenly.
        length: weight of lengths in the distance of the first choice, in [0, 1], as `max_min_select` takes it.
        depths: where to choose again, as shares of the decoder's layers, each in (0, 1), ascending; may be empty.
    """

    asked: float = 0.3
    words: int = 2
    diverse: float = 0.25
    length: float = 0.75
    depths: tuple[float, ...] = (0.25, 0.5, 0.75)
    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    per_frame: ClassVar[bool] = False
    paper: ClassVar[str] = "tokenprune"
    keeps: ClassVar[str] = (
        "tokens similar to words of the question, tokens unlike those, the rest evenly spaced; fewer at each quarter "
        "of the decoder"
    )

    def __post_init__(self) -> None:
        real(self, "asked", least=0, most=1, what="a share of what is chosen")
        whole(self, "words", least=1)
        real(self, "diverse", above=0, most=1, what="a share of the tokens")
        real(self, "length", least=0, most=1)
        reals(self, "depths", above=0, below=1, ascending=True, empty=True, what="shares of the layers")

    def decoder_follow_up(self) -> Policy | None:
        return _AutoInDecoder(Schedule(self.depths), diverse=self.diverse) if self.depths else None

    def select_many(self, tokens: Sequence[VisualTokens], n_keep: Sequence[int]) -> list[Selection]:
        # Inputs with and without named tokens start differently: one call of the op for each kind.
        counts = [at_most(self.diverse, len(each), k) for each, k in zip(tokens, n_keep, strict=True)]
        named = [self.named(each, round(self.asked * k)) for each, k in zip(tokens, counts, strict=True)]
        selections: dict[int, Selection] = {}
        for has_named in (True, False):
            some = [i for i, first in enumerate(named) if (len(first) > 0) == has_named]
            first = [named[i] for i in some] if has_named else None
            inputs = [tokens[i] for i in some]
            chosen = greedy_selections(max_min_select, inputs, [counts[i] for i in some], first, length=self.length)
            selections |= dict(zip(some, chosen, strict=True))
        return [
            Selection(fill_evenly(selections[i].indices, len(each), k))
            for i, (each, k) in enumerate(zip(tokens, n_keep, strict=True))
        ]

    def named(self, tokens: VisualTokens, count: int) -> Tensor:
        """(count,) int64 indices of the tokens that the question names, ascending; empty without a question."""
        words = question_similarity(tokens)
        if count == 0 or len(words) == 0:
            return torch.empty(0, dtype=torch.int64, device=words.device)
        standardised = (words - words.mean(1, keepdim=True)) / words.std(1, keepdim=True, correction=0).clamp(min=1e-6)
        best = standardised.amax(1).topk(min(self.words, len(standardised))).indices
        return topk_select(standardised[best].amax(0), count)


def at_most(share: float, n: int, k: int) -> int:
    """`k`, or the share of `n` tokens if that is less."""
    return min(k, Budget(float(share)).count(n))


@dataclass
class _AutoInDecoder(ScheduledPolicy):
    """Max-min diversity on hidden states, among the tokens that are left at each cut of the schedule."""

    diverse: float = field(kw_only=True)
    name: ClassVar[str] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        real(self, "diverse", above=0, most=1, what="a share of the tokens")

    @property
    def budget_weight(self) -> float:
        return len(self.schedule.depths)

    def decoder_select(self, view: DecoderView) -> list[Tensor] | None:
        return self.decoder_select_many([view])[0]

    def decoder_select_many(self, views: Sequence[DecoderView]) -> list[list[Tensor] | None]:
        kept_counts = [self.counts_at(view) for view in views]
        hidden = [view.hidden() for view in views]
        masks = [
            [
                torch.full((len(columns),), k > 0, device=columns.device)
                for columns, k in zip(view.visual, ks, strict=True)
            ]
            for view, ks in zip(views, kept_counts, strict=True)
        ]
        # Where all or nothing stays there is nothing to choose.
        chosen_from = [
            (row, i) for row, ks in enumerate(kept_counts) for i, k in enumerate(ks) if 0 < k < len(masks[row][i])
        ]
        tokens = [VisualTokens(hidden[row][views[row].visual[i]]) for row, i in chosen_from]
        counts = [at_most(self.diverse, views[row].entered[i], kept_counts[row][i]) for row, i in chosen_from]
        for (row, i), chosen in zip(chosen_from, greedy_selections(max_min_select, tokens, counts), strict=True):
            indices = fill_evenly(chosen.indices, len(masks[row][i]), kept_counts[row][i])
            masks[row][i] = torch.zeros_like(masks[row][i]).index_fill(0, indices, True)
        return list(masks)
