"""auto: diverse tokens, somewhat more of what the question names; the package's default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..budget import Budget
from ..ops import dpp_select
from ..schedule import Schedule
from ..validate import real, reals, whole
from .base import BatchedPolicy, Policy
from .greedy import greedy_selections
from .registration import register
from .relevance import cosines, question_words, standardised
from .scheduled import ScheduledPolicy
from .spacing import fill_evenly
from .stacked import stacked
from .types import DecoderView, Selection, VisualTokens

_LOG_RANGE = 20.0  # log qualities below the best one's that still count; float32 holds their squares


@register("auto")
@dataclass
class Auto(BatchedPolicy):
    """A diverse set that prefers what the question names, and a second choice late in the decoder at mild budgets.

    Before the language model:

    1. The similarity of each question word with each token is standardised over the tokens: minus its mean, divided
       by its standard deviation. Of the `words` words with the largest maximum, a token's relevance z is its largest
       value.
    2. Tokens are chosen greedily by a determinantal point process with kernel q_i cos(x_i, x_j) q_j, as in CDPruner
       (arXiv:2506.10967, section 3.3), where q = exp(asked * z) |x| ** length. Without a question z is 0. A small
       `asked` decides among tokens that are about equally unlike those chosen. It does little harm on a model whose
       tokens do not resemble word embeddings.
    3. At most a share `diverse` of all tokens is chosen like this. The rest of the budget is spaced evenly among the
       other tokens. More diversity would drop what is frequent, and a model that counts by shares would overcount.

    A video is selected from as a whole. Nothing of the vision encoder is read.

    Inside the decoder, at each of `depths`:

    4. Tokens are chosen by the same process among the remaining ones, on hidden states, with
       q = exp(attention * z), where z is the attention of the text after the first visual token in the layer below,
       standardised over the remaining tokens of the input.

    A budget that counts the mean over layers leaves a share `least` of the tokens alone. Of the tokens beyond it that
    enter the decoder, a quarter is left after the last cut. With `keep=0.25` and 32 layers, 0.28 of the tokens enter
    and 0.15 stay from layer 24 on. With `keep` at or below `least`, there is no cut: a model that still reads its
    tokens in late layers needs them all. Without cuts (`depths=()`, or a model whose decoder does not allow them) the
    whole budget is met before the decoder.

    The defaults were chosen on validation questions of the embedded models: docs/bench.md.

    Args:
        asked: weight of the question before the decoder, in [0, 1].
        words: how many words of the question are used, >= 1.
        diverse: largest share of a visual input's tokens that is chosen, in (0, 1]; the rest is spaced evenly.
        length: exponent of the tokens' lengths in their quality, in [0, 1].
        depths: where to choose again, as shares of the decoder's layers, each in (0, 1), ascending; may be empty.
        attention: weight of the text's attention in the decoder, in [0, 1].
        least: share of a visual input's tokens below which nothing leaves in the decoder, in [0, 1].
    """

    asked: float = 0.1
    words: int = 2
    diverse: float = 0.17
    length: float = 0.0
    depths: tuple[float, ...] = (0.75,)
    attention: float = 0.2
    least: float = 0.1
    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    per_frame: ClassVar[bool] = False
    paper: ClassVar[str] = "tokenprune"
    keeps: ClassVar[str] = (
        "diverse tokens, those first that words of the question name, the rest evenly spaced; fewer in the decoder's "
        "last quarter at mild budgets"
    )

    def __post_init__(self) -> None:
        real(self, "asked", "length", "attention", "least", least=0, most=1)
        whole(self, "words", least=1)
        real(self, "diverse", above=0, most=1, what="a share of the tokens")
        reals(self, "depths", above=0, below=1, ascending=True, empty=True, what="shares of the layers")

    def decoder_follow_up(self) -> Policy | None:
        return _AutoInDecoder(Schedule(self.depths), self.attention, self.least) if self.depths else None

    def select_many(self, tokens: Sequence[VisualTokens], n_keep: Sequence[int]) -> list[Selection]:
        counts = [min(k, Budget(float(self.diverse)).count(len(each))) for each, k in zip(tokens, n_keep, strict=True)]
        features = [each.features for each in tokens]
        quality = stacked(self._quality, [question_words(each) for each in tokens], features)
        chosen = greedy_selections(dpp_select, tokens, counts, quality=quality)
        filled: dict[int, Tensor] = {}
        sizes = list(zip(counts, map(len, tokens), n_keep, strict=True))
        for size in dict.fromkeys(sizes):
            some = [i for i, each in enumerate(sizes) if each == size]
            together = torch.stack([chosen[i].indices for i in some])
            filled |= dict(zip(some, fill_evenly(together, *size[1:]), strict=True))
        return [Selection(filled[i]) for i in range(len(tokens))]

    def quality(self, tokens: VisualTokens) -> Tensor:
        """(N,) float32 weights of the tokens in the kernel, the largest 1."""
        return self._quality(question_words(tokens), tokens.features)

    def _quality(self, words: Tensor, features: Tensor) -> Tensor:
        """(..., N) weights of (..., N, D) tokens for (..., Q, D) question words."""
        logs = features.new_zeros(features.shape[:-1], dtype=torch.float32)
        n_words = words.shape[-2]
        if self.asked and n_words:
            relevance = standardised(cosines(words, features))
            if self.words < n_words:
                best = relevance.amax(-1).topk(self.words).indices
                relevance = relevance.gather(-2, best[..., None].expand(*best.shape, relevance.shape[-1]))
            logs = self.asked * relevance.amax(-2)
        if self.length:
            logs = logs + self.length * features.float().norm(dim=-1).clamp(min=1e-12).log()
        return _exp(logs)


def _exp(logs: Tensor) -> Tensor:
    """(..., N) qualities in (0, 1] from their logarithms; the largest becomes 1."""
    return (logs - logs.amax(-1, keepdim=True)).clamp(min=-_LOG_RANGE).exp()


@dataclass
class _AutoInDecoder(ScheduledPolicy):
    """Diverse tokens among those that are left at each cut of the schedule, those first that the text attends to.

    Args:
        schedule: where.
        attention: weight of the text's attention.
        least: share of an input's tokens below which nothing leaves.
    """

    attention: float = 0.2
    least: float = 0.1
    name: ClassVar[str] = "auto"
    #: Of the tokens beyond `least` that enter the decoder, the share that is left after the last cut.
    late: ClassVar[float] = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        real(self, "attention", "least", least=0, most=1)

    @property
    def budget_weight(self) -> float:
        return len(self.schedule.depths)

    def decoder_entry(self, share: float, exponent: float) -> float:
        """`least` and what is beyond it: four tokens that enter for each that is left."""
        return min(1.0, share + max(0.0, share - self.least) * (1 / self.late - 1))

    def decoder_select(self, view: DecoderView) -> list[Tensor] | None:
        return self.decoder_select_many([view])[0]

    def decoder_select_many(self, views: Sequence[DecoderView]) -> list[list[Tensor] | None]:
        counts = [self.counts_at(view) for view in views]
        # Where all or nothing stays there is nothing to choose.
        open_inputs = [
            (row, i) for row, kept in enumerate(counts) for i, k in enumerate(kept) if 0 < k < len(views[row].visual[i])
        ]
        rows = dict.fromkeys(row for row, _ in open_inputs)
        hidden = {row: views[row].hidden() for row in rows}
        attention = {row: self._received(views[row], hidden[row]) for row in rows}
        received = [views[row].at(i, attention[row]) for row, i in open_inputs]
        chosen = greedy_selections(
            dpp_select,
            [VisualTokens(views[row].at(i, hidden[row])) for row, i in open_inputs],
            [counts[row][i] for row, i in open_inputs],
            quality=stacked(lambda scores: _exp(self.attention * standardised(scores)), received),
        )
        masks = dict(zip(open_inputs, stacked(_mask, [few.indices for few in chosen], received), strict=True))
        return [
            [
                masks[row, i] if (row, i) in masks else torch.full((len(columns),), k > 0, device=columns.device)
                for i, (columns, k) in enumerate(zip(view.visual, counts[row], strict=True))
            ]
            for row, view in enumerate(views)
        ]

    def _received(self, view: DecoderView, hidden: Tensor) -> Tensor:
        """(M,) attention of the text, by column; 0 where it does not count."""
        if self.attention == 0 or not len(view.text):
            return torch.zeros(len(hidden), device=hidden.device)
        return view.received(view.text)


def _mask(indices: Tensor, scores: Tensor) -> Tensor:
    """(..., N) bool, True at the (..., K) indices of (..., N) scores."""
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, indices, True)
