"""Removing duplicates in rounds, as VisPruner does, without looking at all pairs in every round."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..ops.host.products import gram, product

_MATRIX_LIMIT = 4096  # tokens of which all similarities are held at once
_NEAREST = (24, 64)  # nearest neighbours of a token that are held, with all similarities at hand and without
_ROWS = 1024  # rows of similarities that are computed at once


def without_duplicates(unit: Tensor, n_keep: int, step: int) -> Tensor:
    """Ascending indices of `n_keep` of (M, D) float32 unit vectors.

    The vectors form a queue, at first as they are given. In a round, those at even places of the queue are compared
    with those at odd places. The even ones are sorted by their largest similarity to an odd one, falling, and equal
    ones stay in order; NaN counts as infinity. The first `step` of them are dropped, in the last round fewer. The
    queue of the next round is the rest of the even ones in this new order, and behind them the odd ones. With an odd
    number of vectors the last counts as even.

    On a device, inputs of up to 4096 tokens never wait for it.
    """
    if unit.device.type != "cpu" and len(unit) <= _MATRIX_LIMIT:
        return _by_matrix(unit, n_keep, step)
    if len(unit) <= n_keep:
        return torch.arange(len(unit), device=unit.device)
    return torch.from_numpy(_Rounds(unit).reduced_to(n_keep, step)).to(unit.device)


def _by_matrix(unit: Tensor, n_keep: int, step: int) -> Tensor:
    """`without_duplicates` by its definition. All sizes are known beforehand."""
    similarity = (unit @ unit.T).nan_to_num_(nan=torch.inf)
    queue = torch.arange(len(unit), device=unit.device)
    while len(queue) > max(1, n_keep):
        even, odd = queue[::2], queue[1::2]
        n_dropped = min(step, len(queue) - n_keep, len(even))
        order = similarity[even][:, odd].amax(1).argsort(descending=True, stable=True)
        queue = torch.cat([even[order[n_dropped:]], odd])
    return queue.sort().values


class _Rounds:
    """The tokens that remain, and the nearest neighbours of each.

    An even token's similarity to the odd ones is that of the first odd token among its neighbours. If none of them is
    odd, its neighbours are looked for again among the tokens that remain.

    Attributes:
        neighbours, similarities: (M, K), the nearest neighbours of each token when they were looked for, the nearest
            first, and their similarities; filled up with M and -inf.
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

    def reduced_to(self, n_keep: int, step: int) -> np.ndarray:
        """Ascending indices of `n_keep` tokens."""
        queue = np.arange(len(self.unit))
        while len(queue) > max(1, n_keep):
            even, odd = queue[::2], queue[1::2]
            self.is_odd[odd] = True
            self.is_odd[even] = False
            n_dropped = min(step, len(queue) - n_keep, len(even))
            order = np.argsort(-self._to_nearest_odd(even), kind="stable")
            self.remains[even[order[:n_dropped]]] = False
            queue = np.concatenate([even[order[n_dropped:]], odd])
            if self.matrix is None and 2 * len(queue) < len(self.columns):
                self.columns = np.sort(queue)
        return np.sort(queue)

    def _to_nearest_odd(self, tokens: np.ndarray) -> np.ndarray:
        """(T,) similarities of tokens to the odd token nearest to each."""
        is_odd = self.is_odd[self.neighbours[tokens]]
        first = is_odd.argmax(1)
        nearest: np.ndarray = self.similarities[tokens, first]
        unknown = np.flatnonzero(~is_odd[np.arange(len(tokens)), first])
        if len(unknown):
            nearest[unknown] = self._look_for(tokens[unknown])
        return nearest

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
