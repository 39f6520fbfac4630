"""auto: our own default; what the question names, and then what is unlike it."""

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
from .base import Policy, register
from .greedy import greedy_selections
from .pyramiddrop import PyramidDrop
from .relevance import likeness
from .spacing import filled
from .types import DecoderView, Selection, VisualTokens


@register("auto")
@dataclass
class Auto(Policy):
    """Max-min diversity from what the question points at, and fewer and fewer of it on the way through the decoder.

    The words that point most clearly (largest likeness to one token, in standard deviations of a word's
    likeness to all) name a share of the budget: the tokens most like any of them. From there on the token
    farthest from all picked so far is added, as in DivPrune (arXiv:2503.02175), but by a distance that
    sees lengths as well as directions. Nothing of the vision encoder is read. Without a question the
    first pick is DivPrune's. A video is selected from as a whole. Once a quarter of all tokens are chosen,
    what the budget has beyond them is spaced evenly among the rest: more diversity would only leave less of
    what is frequent, and a model that counts by shares would count too much.

    At some depths of the decoder DivPrune's choice is made again, among what is left, by the hidden states, and
    again for no more than a quarter of what entered: as PyramidDrop (arXiv:2410.17247) has it, pictures are
    needed less the deeper they are, but no attention is read. Each choice leaves the same share of what there
    was: `keep=0.1` lets 0.56 into the decoder, and 0.32, 0.18, 0.1 pass. Without such choices (`depths=()`, and
    where a model's decoder cannot be cut) the budget enters.

    Its numbers were chosen on validation questions of the embedded models: docs/bench.md.

    Args:
        asked: share of what is chosen first for what the question names.
        words: how many words may name it.
        diverse: share of a picture's tokens that are chosen, at most; the rest of the budget is spaced evenly among
            the others, so that these keep their proportions.
        length: how much lengths count in the first choice, as `max_min_select` takes it.
        depths: where to choose again, as shares of the decoder's layers, ascending.
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
        "what the question names, what is unlike it, the rest evenly; less by quarters of the decoder"
    )

    def __post_init__(self) -> None:
        real(self, "asked", least=0, most=1, what="a share of what is chosen")
        whole(self, "words", least=1)
        real(self, "diverse", above=0, most=1, what="a share of the tokens")
        real(self, "length", least=0, most=1)
        reals(self, "depths", above=0, below=1, ascending=True, empty=True, what="shares of the layers")

    def deeper(self) -> Policy | None:
        return _Deeper(Schedule(self.depths), diverse=self.diverse) if self.depths else None

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        return self.select_many([tokens], [n_keep])[0]

    def select_many(self, tokens: Sequence[VisualTokens], n_keep: Sequence[int]) -> list[Selection]:
        # Inputs with and without something asked for begin differently: one call for each kind.
        counts = [at_most(self.diverse, len(each), k) for each, k in zip(tokens, n_keep, strict=True)]
        named = [self.named(each, round(self.asked * k)) for each, k in zip(tokens, counts, strict=True)]
        out: dict[int, Selection] = {}
        for begun in (True, False):
            some = [i for i, first in enumerate(named) if (len(first) > 0) == begun]
            first = [named[i] for i in some] if begun else None
            inputs = [tokens[i] for i in some]
            chosen = greedy_selections(max_min_select, inputs, [counts[i] for i in some], first, length=self.length)
            out |= dict(zip(some, chosen, strict=True))
        return [
            Selection(filled(out[i].indices, len(each), k))
            for i, (each, k) in enumerate(zip(tokens, n_keep, strict=True))
        ]

    def named(self, tokens: VisualTokens, count: int) -> Tensor:
        """(count,) tokens that the question names, or none."""
        words = likeness(tokens)
        if count == 0 or len(words) == 0:
            return torch.empty(0, dtype=torch.int64, device=words.device)
        clear = (words - words.mean(1, keepdim=True)) / words.std(1, keepdim=True, correction=0).clamp(min=1e-6)
        best = clear.amax(1).topk(min(self.words, len(clear))).indices
        return topk_select(clear[best].amax(0), count)


def at_most(share: float, n: int, k: int) -> int:
    """How many of `k` tokens are chosen, of `n`; the others are spaced."""
    return min(k, Budget(float(share)).count(n))


@dataclass
class _Deeper(PyramidDrop):
    """Chooses again, of the tokens that entered the decoder."""

    diverse: float = field(kw_only=True)
    name: ClassVar[str] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        real(self, "diverse", above=0, most=1, what="a share of the tokens")

    @property
    def way(self) -> float:
        return len(self.schedule.depths)

    def deep_select(self, view: DecoderView) -> list[Tensor] | None:
        return self.deep_select_many([view])[0]

    def deep_select_many(self, views: Sequence[DecoderView]) -> list[list[Tensor] | None]:
        left = [self._counts(view) for view in views]
        hidden = [view.hidden() for view in views]
        kept = [
            [torch.full((len(places),), k > 0, device=places.device) for places, k in zip(view.visual, ks, strict=True)]
            for view, ks in zip(views, left, strict=True)
        ]
        asked = [(row, i) for row, ks in enumerate(left) for i, k in enumerate(ks) if 0 < k < len(kept[row][i])]
        tokens = [VisualTokens(hidden[row][views[row].visual[i]]) for row, i in asked]
        counts = [at_most(self.diverse, views[row].entered[i], left[row][i]) for row, i in asked]
        for (row, i), chosen in zip(asked, greedy_selections(max_min_select, tokens, counts), strict=True):
            places = filled(chosen.indices, len(kept[row][i]), left[row][i])
            kept[row][i] = torch.zeros_like(kept[row][i]).index_fill(0, places, True)
        return list(kept)
