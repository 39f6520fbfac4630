"""Tokens that cover all tokens, with no matrix of all similarities: for inputs for which it would be too large."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .excess import Gains
from .targets import TokenTargets

MATRIX_BYTES = 1 << 29  # of similarities: the whole matrix, for inputs up to that
_ROW_BYTES = 1 << 27  # rows of similarities that are kept, since they will be read again
_AGAIN = (8, 256)  # least and most candidates whose gains are computed again at once
_AHEAD = 256  # rows that are computed at once: a product with few of them takes as long
_WASTE = 2  # times the rows computed for no pick
_SLACK = 1 + 1e-4  # the first gains are summed in another order, and have to be upper bounds


def covering_tokens(targets: TokenTargets, factor: np.ndarray, k: int) -> np.ndarray:
    """(k,) int64 picks.

    There is an upper bound of each token's gain, and gains are computed in the order of bounds, until the largest value
    of all is a gain. Bounds are earlier gains, since gains never grow; and, on the CPU, gains that are kept up to date
    by what picks change. They are brought up to date where that takes fewer products than the gains of all tokens whose
    bounds are too large.

    Args:
        targets: the targets.
        factor: (N,) float32 factors of the gains.
        k: number of picks.
    """
    bound = targets.prepare().cpu().numpy() * _SLACK * factor
    gains = Gains(targets) if targets.unit.device.type == "cpu" else None
    rows = _Rows(targets, bound)
    covered = torch.zeros(targets.count, device=targets.unit.device)
    picks, paid = np.empty(k, np.int64), 0
    for i in range(k):
        fresh, most, count = np.zeros(len(bound), bool), -np.inf, _AGAIN[0]
        while not fresh[best := int(bound.argmax())]:
            if bound[best] == 0:  # nor will any other token cover more after further picks
                picks[i:] = np.flatnonzero(bound == 0)[: k - i]
                return picks
            stale = np.where(fresh, -np.inf, bound)
            again = np.argpartition(stale, -count)[-count:] if count < len(stale) else np.arange(len(stale))
            again = np.union1d(again[stale[again] != -np.inf], best)
            bound[again] = rows.of(again).sub_(covered).clamp_(min=0).sum(1).cpu().numpy() * factor[again]
            fresh[again] = True
            most = max(most, bound[again].max())
            too_large = ((bound > most) & ~fresh).sum()
            if gains is not None and gains.behind and gains.price() < too_large + _WASTE * (rows.computed - paid - i):
                gains.catch_up()
                paid = rows.computed - i
                gains.lower(bound, factor)
            count = min(2 * count, _AGAIN[1])
        picks[i] = best
        row = rows.of(np.array([best]))[0]
        covered = torch.maximum(covered, row)
        if gains is not None:
            gains.pick(row.numpy())
            gains.lower(bound, factor)
        bound[best] = -np.inf
    return picks


class _Rows:
    """Rows of similarities, of which those of the tokens with the largest bounds are kept.

    Args:
        targets: computes rows.
        bound: (N,) upper bounds of gains, which the caller updates.
    """

    def __init__(self, targets: TokenTargets, bound: np.ndarray):
        self.targets, self.bound = targets, bound
        places = min(len(bound), max(2 * _AGAIN[1], _ROW_BYTES // (4 * targets.count)))
        self.computed = 0  # rows so far
        self.kept = targets.unit.new_empty(places, targets.count)
        self.place_of = np.full(len(bound), -1)  # of a token; -1: not kept
        self.token_at = np.full(places, -1)  # of a place; -1: free

    def of(self, tokens: np.ndarray) -> Tensor:
        """(M, R) rows of (M,) distinct tokens, a copy."""
        missing = tokens[self.place_of[tokens] < 0]
        if len(missing):
            if len(missing) < _AHEAD:  # and of those that are likely to be next
                others = np.where((self.place_of < 0) & ~np.isnan(self.bound), self.bound, -np.inf)
                others[missing] = np.inf
                likely = np.argpartition(others, -min(_AHEAD, len(others)))[-_AHEAD:]
                missing = np.sort(likely[others[likely] > -np.inf])
            places = self._places(len(missing), tokens)
            computed = self.kept.new_empty(len(missing), self.targets.count)
            self.targets.rows(missing, computed)
            self.computed += len(missing)
            self.kept[torch.from_numpy(places).to(self.kept.device)] = computed
            self.token_at[places], self.place_of[missing] = missing, places
        return self.kept[torch.from_numpy(self.place_of[tokens]).to(self.kept.device)]

    def _places(self, count: int, wanted: np.ndarray) -> np.ndarray:
        """(count,) free places. Rows of the tokens with the smallest bounds are given up for them, not wanted ones."""
        free = np.flatnonzero(self.token_at < 0)
        if len(free) < count:
            value = self.bound[self.token_at]
            value[np.isnan(value)] = -np.inf
            value[free] = -np.inf
            value[self.place_of[wanted[self.place_of[wanted] >= 0]]] = np.inf
            some = min(len(value) - 1, max(count, len(value) // 8))
            given_up = np.argpartition(value, some)[:some]
            given_up = given_up[value[given_up] < np.inf]
            tokens = self.token_at[given_up]
            self.place_of[tokens[tokens >= 0]] = -1
            self.token_at[given_up] = -1
            free = np.flatnonzero(self.token_at < 0)
        return free[:count]
