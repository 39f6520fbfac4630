"""Greedy ops on the device for inputs whose matrix of similarities would take more than the workspace.

Each pick reads one row of similarities, as a product of the tokens with it. Picks stay on the device, and nothing waits
for them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..reference import NO_VARIANCE, SPREAD

_TILE = 1 << 26  # elements of a block of similarities: 256 MB


def greedy(
    features: Tensor, k: int, first: Tensor | None, mask: Tensor | None, summed: bool, length: float = 0.0
) -> Tensor:
    """(B, k) int64 picks of `max_min_select`, or of `max_sum_select` if `summed`."""
    picks = []
    for i, image in enumerate(features):
        given = None if first is None else first[i]
        picks.append(_greedy(_Rows(image, None if mask is None else mask[i], length), k, given, summed))
    return torch.stack(picks)


def dpp_select(features: Tensor, quality: Tensor, k: int, mask: Tensor | None) -> Tensor:
    """(B, k) int64 picks of the op of that name."""
    picks = [
        _most_volume(_Rows(image, None if mask is None else mask[i], 0), quality[i], k)
        for i, image in enumerate(features)
    ]
    return torch.stack(picks)


class _Rows:
    """Similarities of one image's tokens, a row or a block at a time.

    Attributes:
        unit: (N, D) float32.
        excluded: (N,) bool, True for tokens that are no candidates.
        norms: (N,) lengths in units of the candidates' mean, if they count.
    """

    def __init__(self, features: Tensor, mask: Tensor | None, length: float):
        self.unit, self.length, self.norms = F.normalize(features.float(), dim=-1), length, None
        self.excluded = self.unit.new_zeros(len(features), dtype=torch.bool) if mask is None else ~mask
        if length:
            norms = features.float().norm(dim=-1)
            mean = norms.masked_fill(self.excluded, 0).sum() / (~self.excluded).sum().clamp(min=1)
            self.norms = norms / mean.clamp(min=1e-12)

    def of(self, token: Tensor) -> Tensor:
        """(N,) similarities to the token at a (1,) index."""
        row = torch.mv(self.unit, self.unit.index_select(0, token)[0])
        return row if self.norms is None else self._with_lengths(row, self.norms.index_select(0, token), self.norms)

    def nearest(self) -> Tensor:
        """(N,) similarity of each candidate to its nearest one; infinite for others."""
        n = len(self.unit)
        nearest = self.unit.new_full((n,), -torch.inf)
        for start in range(0, n, step := max(1, _TILE // n)):
            block = self.unit[start : start + step] @ self.unit[start:].T
            if self.norms is not None:
                block = self._with_lengths(block, self.norms[start : start + step, None], self.norms[start:])
            block.masked_fill_(self.excluded[start:], -torch.inf).fill_diagonal_(-torch.inf)
            block.masked_fill_(self.excluded[start : start + step, None], -torch.inf)
            of_columns = nearest[start:]
            torch.maximum(of_columns, block.amax(0), out=of_columns)
            of_rows = of_columns[:step]
            torch.maximum(of_rows, block.amax(1), out=of_rows)
        return nearest.masked_fill_(self.excluded, torch.inf)

    def _with_lengths(self, cosine: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        cosine *= (1 - self.length) + self.length * (rows * columns)
        cosine -= self.length / 2 * (rows**2 + columns**2)
        return cosine


@torch.no_grad()
def _greedy(rows: _Rows, k: int, first: Tensor | None, summed: bool) -> Tensor:
    excluded = rows.excluded.clone()
    picks = torch.empty(k, dtype=torch.int64, device=excluded.device)
    last = rows.nearest().argmin(keepdim=True) if first is None else first[:1].long()
    picks[:1] = last.masked_fill(excluded.all(), -1)
    score = rows.unit.new_full((len(excluded),), 0.0 if summed else -torch.inf)
    for i in range(1, k):
        row = rows.of(last)
        score = score + row if summed else torch.maximum(score, row)
        excluded.index_fill_(0, last, True)
        last = score.masked_fill(excluded, torch.inf).argmin(keepdim=True)
        if first is not None and i < len(first):
            last = torch.where(first[i] >= 0, first[i], last)
        picks[i : i + 1] = last.masked_fill(excluded.all(), -1)
    return picks


@torch.no_grad()
def _most_volume(rows: _Rows, quality: Tensor, k: int) -> Tensor:
    n, taken = len(rows.unit), rows.excluded.clone()
    quality = quality.float()
    order = torch.arange(n, device=quality.device) * SPREAD % 2**32
    prior = rows.unit.square().sum(1) * quality**2
    variance, factor = prior.clone(), rows.unit.new_zeros(k, n)
    picks = torch.empty(k, dtype=torch.int64, device=quality.device)
    for i in range(k):
        score = torch.where(variance > NO_VARIANCE * prior, variance, 0).masked_fill_(taken, -torch.inf)
        most, best = score.max(0, keepdim=True)
        best = torch.where(most > 0, best, order.masked_fill(taken, 2**32).argmin(keepdim=True))
        picks[i : i + 1] = best.masked_fill(taken.all(), -1)
        row = rows.of(best) * quality * quality.index_select(0, best)
        row = row - factor[:i].index_select(1, best)[:, 0] @ factor[:i]
        factor[i] = torch.where(most > 0, row / most.clamp(min=1e-30).sqrt(), 0)
        variance = variance - factor[i] ** 2
        taken.index_fill_(0, best, True)
    return picks
