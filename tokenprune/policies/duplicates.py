"""Removing duplicates in rounds, as VisPruner does, without looking at all pairs in every round."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..ops import topk_select
from ..ops.host.products import gram, product
from .spacing import complement

_MATRIX_LIMIT = 4096  # tokens of which all similarities are held at once
_NEAREST = (24, 64)  # nearest neighbours of a token that are held, with all similarities at hand and without
_TRIED = 32  # tokens that are looked at together
_ROWS = 1024  # rows of similarities that are computed at once
# What is known of a token's similarity to the nearest odd one: an upper bound; that no neighbour held is odd; itself.
_BOUND, _EXHAUSTED, _EXACT = range(3)


def without_duplicates(unit: Tensor, n_keep: int, step: int) -> Tensor:
    """Ascending indices of `n_keep` of (M, D) float32 unit vectors.

    In a round, tokens at even indices among those that remain are compared with those at odd ones, and the `step` even
    ones most similar to an odd one are dropped; the lowest index first among equals. NaN counts as infinity. The last
    round drops fewer, and an odd last token counts as even.

    On a device, inputs of up to 4096 tokens never wait for it.
    """
    if unit.device.type != "cpu" and len(unit) <= _MATRIX_LIMIT:
        return _by_matrix(unit, n_keep, step)
    if len(unit) <= n_keep:
        return torch.arange(len(unit), device=unit.device)
    return torch.from_numpy(_Rounds(unit).reduced_to(n_keep, step)).to(unit.device)


def _by_matrix(unit: Tensor, n_keep: int, step: int) -> Tensor:
    """`without_duplicates` by its definition. All sizes are known beforehand."""
    similarity = unit @ unit.T
    remaining = torch.arange(len(unit), device=unit.device)
    while len(remaining) > n_keep:
        even, odd = remaining[::2], remaining[1::2]
        if len(odd) == 0:
            break
        n_dropped = min(step, len(remaining) - n_keep, len(even))
        duplicates = topk_select(similarity[even][:, odd].amax(1), n_dropped)
        remaining = remaining[complement(2 * duplicates, len(remaining))]
    return remaining


class _Rounds:
    """The tokens that remain, and the nearest neighbours of each.

    An even token's similarity to the odd ones is that of the first odd token among its neighbours. The similarity of
    its first neighbour that remains is an upper bound of it, and of what it can be in any later round. So only the
    tokens with the largest bounds are looked at.

    Attributes:
        neighbours, similarities: (M, K), the nearest neighbours of each token when they were looked for, the nearest
            first, and their similarities; filled up with M and -inf.
        bound: (M,) upper bounds.
        is_odd, remains: (M + 1,) bool, False for M.
    """

    def __init__(self, unit: Tensor):
        m = len(unit)
        self.unit, self.columns = unit, np.arange(m)  # the tokens that similarities are computed to
        self.finite = bool(torch.isfinite(unit.sum()))
        # Small products are not symmetric to the bit, and rounding decides between equal tokens: as in `_by_matrix`.
        self.matrix = None if m > _MATRIX_LIMIT else unit @ unit.T if m < 128 else gram(unit)
        k = max(1, min(_NEAREST[self.matrix is None], m - 1))
        self.neighbours, self.similarities = np.full((m, k), m), np.full((m, k), -np.inf, np.float32)
        self.remains, self.is_odd = np.arange(m + 1) < m, np.zeros(m + 1, bool)
        if self.matrix is not None:
            self._look_for(np.arange(m))
        else:
            self._look_for_all()
        self.bound = self.similarities[:, 0].copy()

    def reduced_to(self, n_keep: int, step: int) -> np.ndarray:
        """Ascending indices of `n_keep` tokens."""
        remaining = np.arange(len(self.unit))
        while len(remaining) > max(1, n_keep):
            even = remaining[::2]
            self.is_odd[remaining[1::2]] = True
            self.is_odd[even] = False
            dropped = self._most_similar(even, min(step, len(remaining) - n_keep, len(even)))
            self.remains[even[dropped]] = False
            remaining = np.delete(remaining, 2 * dropped)
            if self.matrix is None and 2 * len(remaining) < len(self.columns):
                self.columns = remaining
        return remaining

    def _most_similar(self, even: np.ndarray, count: int) -> np.ndarray:
        """Ascending numbers of the `count` tokens of `even` that are most similar to an odd one."""
        value, known = self.bound[even], np.full(len(even), _BOUND)
        while True:
            best = _largest(value, count)
            unknown = best[known[best] < _EXACT]
            if len(unknown) == 0:
                return best
            exhausted = unknown[known[unknown] == _EXHAUSTED]
            if len(exhausted):
                value[exhausted], known[exhausted] = self._look_for(even[exhausted]), _EXACT
                continue
            tried = _largest(np.where(known == _BOUND, value, -np.inf), max(_TRIED, count))
            tried = tried[known[tried] == _BOUND]
            value[tried], known[tried] = self._nearest_odd(even[tried])

    def _nearest_odd(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(T,) similarities to the nearest odd token, where one is held, otherwise upper bounds; (T,) which it is."""
        neighbours, similarities, row = self.neighbours[tokens], self.similarities[tokens], np.arange(len(tokens))
        remains, is_odd = self.remains[neighbours], self.is_odd[neighbours]
        last = similarities[:, -1]
        self.bound[tokens] = np.where(remains.any(1), similarities[row, remains.argmax(1)], last)
        found = is_odd.any(1)
        return np.where(found, similarities[row, is_odd.argmax(1)], last), np.where(found, _EXACT, _EXHAUSTED)

    def _look_for_all(self) -> None:
        """Find the nearest neighbours of all tokens. Blocks below the diagonal are those above it, mirrored."""
        m = len(self.unit)
        for start in range(0, m, _ROWS):
            stop = min(m, start + _ROWS)
            rows = product(self.unit[start:stop], self.unit[start:]).cpu()
            if not self.finite:
                rows.nan_to_num_(nan=torch.inf)
            rows.fill_diagonal_(-torch.inf)
            self._add(start, rows, start)
            for below in range(stop, m, _ROWS):
                self._add(below, rows[:, below - start : below - start + _ROWS].T.contiguous(), start)

    def _add(self, first: int, rows: Tensor, column: int) -> None:
        """Add neighbours of the tokens from `first` on: (T, C) similarities to the tokens from `column` on."""
        tokens, k = slice(first, first + len(rows)), self.neighbours.shape[1]
        most = rows.topk(min(k, rows.shape[1]))
        similarities = torch.cat([torch.from_numpy(self.similarities[tokens]), most.values], 1)
        neighbours = torch.cat([torch.from_numpy(self.neighbours[tokens]), most.indices + column], 1)
        best = similarities.topk(k)
        self.similarities[tokens] = best.values.numpy()
        self.neighbours[tokens] = neighbours.gather(1, best.indices).numpy()

    def _look_for(self, tokens: np.ndarray) -> np.ndarray:
        """Find the nearest neighbours of tokens among those that remain. (T,) the similarity of the nearest odd one."""
        index = torch.from_numpy(tokens)
        if self.matrix is not None:
            rows = self.matrix[index].numpy()
        else:
            device = self.unit.device
            computed = product(self.unit[index.to(device)], self.unit[torch.from_numpy(self.columns).to(device)])
            rows = computed.cpu().numpy()
        if not self.finite:
            rows[np.isnan(rows)] = np.inf  # as `topk_select` has it
        rows[:, ~self.remains[self.columns]] = -np.inf
        at = np.searchsorted(self.columns, tokens)
        rows[np.arange(len(tokens)), at] = -np.inf
        k = min(self.neighbours.shape[1], rows.shape[1])
        most = torch.from_numpy(rows).topk(k)
        self.neighbours[tokens, :k] = self.columns[most.indices.numpy()]
        self.similarities[tokens, :k] = most.values.numpy()
        self.similarities[tokens, k:] = -np.inf
        nearest_odd: np.ndarray = np.where(self.is_odd[self.columns], rows, -np.inf).max(1)
        return nearest_odd


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Ascending indices of the `count` largest values, or of all; the lowest index first among equals."""
    n = len(values)
    if count >= n:
        return np.arange(n)
    limit = np.partition(values, n - count)[n - count]
    above = np.flatnonzero(values > limit)
    ties = np.flatnonzero(values == limit)[: count - len(above)]
    return np.sort(np.concatenate([above, ties]))
