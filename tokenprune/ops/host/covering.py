"""Tokens that cover all tokens, with no matrix of all similarities: for inputs for which it would be too large."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .products import TILE, gram, product

_SIDE = 1024  # tokens along a side of a block of similarities
MATRIX_BYTES = 1 << 29  # of similarities that are held: the whole matrix, or rows of it that are read again
_AGAIN = (8, 256)  # least and most candidates whose gains are computed again at once
_AHEAD = 256  # rows that are computed at once: a product with few of them takes as long
_SLACK = 1 + 1e-4  # the first gains are summed in another order, and have to be upper bounds


class TokenTargets:
    """How well tokens cover all tokens, and other targets, as `token_coverage_select` defines it.

    Args:
        unit: (N, D) float32 unit vectors.
        weight: (N,) float32 weights of the tokens as targets; None: ones.
        shift: of the cosine similarities.
        temperature: of a softmax over tokens; None: no softmax.
        others: (W, N) float32, how well tokens cover other targets.
    """

    def __init__(
        self, unit: Tensor, weight: Tensor | None, shift: float, temperature: float | None, others: Tensor | None
    ):
        self.unit, self.shift, self.temperature, self.others = unit, shift, temperature, others
        self.weight = unit.new_ones(len(unit)) if weight is None else weight
        self.weighted = weight is not None
        # A zero vector is as similar to all tokens. All other vectors are most similar to themselves.
        self.is_zero = (unit == 0).all(1)

    def matrix(self) -> Tensor:
        """(N, N + W): how well each token covers each target."""
        n = len(self.unit)
        matrix = self.unit.new_empty(n, self.count)
        cover = gram(self.unit, out=matrix[:, :n])
        if self.shift:
            cover.add_(self.shift / (1 - self.shift)).mul_(1 - self.shift)
        if self.temperature is not None:
            cover.div_(self.temperature)
            for part in cover.split(_SIDE):
                part.copy_(part.softmax(-1))
            _transpose(cover)  # symmetric until the softmax; rows are candidates from here on
        if self.weighted:
            cover *= self.weight
        if self.others is not None:
            matrix[:, n:] = self.others.T
        return matrix

    def prepare(self) -> Tensor:
        """(N,) gains of all tokens before the first pick. With a softmax, its denominators are computed first."""
        if self.temperature is not None:
            total = self.unit.new_zeros(len(self.unit))
            for rows, columns, block in self._blocks():
                total[rows] += block.sum(1)
                if rows.start != columns.start:
                    total[columns] += block.sum(0)
            # A zero vector's softmax is even.
            self.even = self.weight / len(self.unit)
            self.weight = torch.where(self.is_zero, 0, self.weight / total)
        gains = self.unit.new_zeros(len(self.unit))
        for rows, columns, block in self._blocks():
            block.clamp_(min=0)
            gains[rows] += block @ self.weight[columns]
            if rows.start != columns.start:
                gains[columns] += self.weight[rows] @ block
        if self.temperature is not None:
            gains += torch.where(self.is_zero, self.even, 0).sum()
        return gains if self.others is None else gains + self.others.clamp(min=0).sum(0)

    def _blocks(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Blocks on and above the diagonal of the symmetric matrix of similarities, without weights."""
        n = len(self.unit)
        for i in range(0, n, _SIDE):
            for j in range(i, n, _SIDE):
                rows, columns = slice(i, min(n, i + _SIDE)), slice(j, min(n, j + _SIDE))
                yield rows, columns, self._changed(product(self.unit[rows], self.unit[columns]))

    def _changed(self, cosine: Tensor) -> Tensor:
        if self.shift:
            cosine = cosine.add_(self.shift / (1 - self.shift)).mul_(1 - self.shift)
        if self.temperature is not None:
            cosine = cosine.sub_(1).div_(self.temperature).exp_()
        return cosine

    def rows(self, tokens: np.ndarray, out: Tensor) -> None:
        """Write (M, N + W), how well the tokens at (M,) indices cover all targets; after `prepare`."""
        n = len(self.unit)
        index = torch.from_numpy(tokens).to(self.unit.device)
        for start in range(0, n, step := max(_SIDE, TILE // len(tokens))):
            part = slice(start, min(n, start + step))
            block = self._changed(product(self.unit[index], self.unit[part])).mul_(self.weight[part])
            if self.temperature is not None:
                block = torch.where(self.is_zero[part], self.even[part], block)
            out[:, part] = block
        if self.others is not None:
            out[:, n:] = self.others[:, index].T

    @property
    def count(self) -> int:
        """Number of targets."""
        return len(self.unit) + (0 if self.others is None else len(self.others))


def _transpose(matrix: Tensor) -> None:
    """Transpose (N, N) in place."""
    n = len(matrix)
    for i in range(0, n, _SIDE):
        for j in range(i, n, _SIDE):
            rows, columns = slice(i, i + _SIDE), slice(j, j + _SIDE)
            upper = matrix[rows, columns].clone()
            matrix[rows, columns] = matrix[columns, rows].T.clone()
            matrix[columns, rows] = upper.T


def covering_tokens(targets: TokenTargets, factor: np.ndarray, k: int) -> np.ndarray:
    """(k,) int64 picks.

    A gain is an upper bound of all later gains of a token. Only the largest are computed again. Rows of similarities
    of the tokens with the largest bounds are kept, as many as fit `MATRIX_BYTES`.

    Args:
        targets: the targets.
        factor: (N,) factors of the gains.
        k: number of picks.
    """
    bound = targets.prepare().cpu().numpy() * _SLACK * factor
    rows = _Rows(targets, bound)
    covered = torch.zeros(targets.count, device=targets.unit.device)
    picks = np.empty(k, np.int64)
    for i in range(k):
        fresh = np.zeros(len(bound), bool)
        count = _AGAIN[0]
        while not fresh[best := int(bound.argmax())]:
            stale = np.where(fresh, -np.inf, bound)
            again = np.argpartition(stale, -count)[-count:] if count < len(stale) else np.arange(len(stale))
            again = np.sort(again[stale[again] != -np.inf])
            bound[again] = rows.of(again).sub_(covered).clamp_(min=0).sum(1).cpu().numpy() * factor[again]
            fresh[again] = True
            count = min(2 * count, _AGAIN[1])
        picks[i] = best
        covered = torch.maximum(covered, rows.of(np.array([best]))[0])
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
        places = min(len(bound), max(2 * _AGAIN[1], MATRIX_BYTES // (4 * targets.count)))
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
