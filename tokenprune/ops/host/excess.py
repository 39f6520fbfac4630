"""Gains of tokens that are kept up to date by what each pick changes, with no matrix of all similarities."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from .targets import TokenTargets

LIST_BYTES = 5 << 26  # of lists: 335 MB
_CHUNK = 1 << 18  # entries of lists that are read at once
_SLACK, _ROUNDING = 1 + 1e-5, 1e-12  # so that gains that are summed in another order are upper bounds
_SMALL = 1e-3  # of the largest gain at the last count; below, all gains are counted again


class Gains:
    """How much each token would add to the coverage of all targets, before its factor.

    A pick changes the coverage of some targets, and with it what other tokens add to these. For a target that few
    tokens still cover better than the picks do, these tokens are listed, and its changes are counted at once. The
    similarities of other targets have to be computed for that, so they are left to `catch_up`. Until then gains are too
    large, never too small.

    Args:
        targets: the targets, after `prepare`.

    Attributes:
        gain: (N,) float64.
        behind: how many targets' changes are not counted.
    """

    def __init__(self, targets: TokenTargets):
        n = len(targets.unit)
        self.targets, self.n = targets, n
        self.gain = np.full(n, np.inf)
        self.covered = np.zeros(targets.count, np.float32)
        self.counted = np.zeros(targets.count, np.float32)  # coverage of the targets that gains are counted with
        self.lists = _Lists(n)
        self.others = np.empty((0, n), np.float32) if targets.others is None else targets.others.numpy()
        self.behind = 0
        self.scale = np.inf  # the largest gain at the last count

    def pick(self, row: NDArray[np.float32]) -> None:
        """Count a pick.

        Args:
            row: (N + W,), how well it covers all targets.
        """
        changed = np.flatnonzero(row > self.covered)
        self.covered[changed] = row[changed]
        if self.scale == np.inf:  # nothing has been counted so far
            self.behind = self.n
            return
        tokens, words = changed[changed < self.n], changed[changed >= self.n]
        listed = tokens[self.lists.length[tokens] >= 0]
        self.gain -= self.lists.lost(listed, self.counted, self.covered)
        if len(words):
            cover = self.others[words - self.n]
            self.gain -= _excess(cover, self.counted[words]) - _excess(cover, self.covered[words])
        self.counted[listed], self.counted[words] = self.covered[listed], self.covered[words]
        self.behind = int((self.counted != self.covered).sum())
        if self.behind == 0 and (self.lists.length >= 0).all() and self.gain.max() < _SMALL * self.scale:
            self._count_lists()

    def lower(self, bound: NDArray[np.float32], factor: NDArray[np.float32]) -> None:
        """Lower (N,) upper bounds of gains times their factors, in place."""
        if self.scale < np.inf:
            gain = np.maximum(self.gain, 0) + _ROUNDING * self.scale
            np.fmin(bound, (gain * _SLACK * factor).astype(np.float32), out=bound)

    def price(self) -> float:
        """How many rows of similarities have as many products as `catch_up` has to compute."""
        return self.behind * (1 - self.behind / (2 * self.n))

    def catch_up(self) -> None:
        """Count all changes. The first time, all gains are counted anew."""
        first = self.scale == np.inf
        if first:
            self.gain = _excess(self.others, self.covered[self.n :])
            rows = np.arange(self.n)
        else:
            rows = np.flatnonzero(self.counted[: self.n] != self.covered[: self.n])
        self.lists.length[rows] = 0
        for some, tokens, block in self.targets.blocks_of(rows):
            cover = block.numpy()
            more = np.maximum(cover - self.covered[some, None], 0)
            self.gain[tokens] += more.sum(0, dtype=np.float64)
            if not first:
                self.gain[tokens] -= _excess(cover, self.counted[some])
            self.lists.add(some, tokens, cover, more > 0)
        self.counted[:] = self.covered
        self.behind = 0
        if first:
            self.scale = float(self.gain.max())

    def _count_lists(self) -> None:
        """Sum all gains again, from lists. What was added and taken away leaves rounding, but for this."""
        self.gain = _excess(self.others, self.covered[self.n :]) + self.lists.total(self.covered)
        self.scale = float(self.gain.max())


def _excess(cover: NDArray[np.float32], covered: NDArray[np.float32]) -> NDArray[np.float64]:
    """(K,) float64, by how much tokens exceed the coverage of targets, summed over (M,) targets; of (M, K)."""
    more = cover - covered[:, None]
    total: NDArray[np.float64] = np.maximum(more, 0, out=more).sum(0, dtype=np.float64)
    return total


class _Lists:
    """For each target, the tokens that exceed its coverage, and how well they cover it.

    Attributes:
        token, cover: (N, room) lists.
        length: (N,) int64; -1: no list, since it would be longer than its room.
    """

    def __init__(self, n: int):
        kind = np.min_scalar_type(n - 1)
        self.n, self.room = n, max(1, min(n, LIST_BYTES // (n * (4 + kind.itemsize))))
        self.token, self.cover = np.empty((n, self.room), kind), np.empty((n, self.room), np.float32)
        self.length = np.full(n, -1)

    def add(
        self,
        rows: NDArray[np.int64],
        tokens: NDArray[np.int64],
        cover: NDArray[np.float32],
        exceeds: NDArray[np.bool_],
    ) -> None:
        """Append to lists of (M,) targets those of (K,) tokens that exceed their coverage, (M, K)."""
        length = self.length[rows]
        longer = length + exceeds.sum(1)
        self.length[rows] = np.where((length >= 0) & (longer <= self.room), longer, -1)
        some = np.flatnonzero(self.length[rows] >= 0)
        if len(some):
            row, column = np.nonzero(exceeds[some])
            at = _ranks(row, len(some), length[some]) + rows[some][row] * self.room
            self.token.reshape(-1)[at] = tokens[column]
            self.cover.reshape(-1)[at] = cover[some[row], column]

    def lost(
        self, rows: NDArray[np.int64], before: NDArray[np.float32], after: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """(N,), what tokens lose by the coverage of (M,) targets having grown; their lists get shorter.

        Args:
            rows: the targets.
            before: (N + W,), their coverage before.
            after: (N + W,), their coverage.
        """
        lost = np.zeros(self.n)
        for some, valid, token, cover in self._chunks(rows):
            more = np.maximum(cover - after[some, None], 0)
            less = (cover - before[some, None])[valid].astype(np.float64) - more[valid]
            lost += np.bincount(token[valid], less, self.n)
            keep = valid & (more > 0)
            row, column = np.nonzero(keep)
            at = _ranks(row, len(some)) + some[row] * self.room
            self.token.reshape(-1)[at], self.cover.reshape(-1)[at] = token[row, column], cover[row, column]
            self.length[some] = keep.sum(1)
        return lost

    def total(self, covered: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N,), by how much tokens exceed the coverage of all targets."""
        total = np.zeros(self.n)
        for some, valid, token, cover in self._chunks(np.arange(self.n)):
            total += np.bincount(token[valid], (cover - covered[some, None])[valid], self.n)
        return total

    def _chunks(
        self, rows: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.unsignedinteger], NDArray[np.float32]]]:
        """Some of the targets, which entries are valid, their tokens and how well they cover; (M, longest) each."""
        rows = rows[np.argsort(-self.length[rows], kind="stable")]
        rows = rows[self.length[rows] > 0]
        while len(rows):
            longest = int(self.length[rows[0]])
            some, rows = np.split(rows, [max(1, _CHUNK // longest)])
            valid = np.arange(longest) < self.length[some, None]
            yield some, valid, self.token[some, :longest], self.cover[some, :longest]


def _ranks(row: NDArray[np.int64], n_rows: int, start: NDArray[np.int64] | int = 0) -> NDArray[np.int64]:
    """(E,), how many entries of the same row are before each, plus the row's start; of (E,) ascending rows."""
    before = np.cumsum(counts := np.bincount(row, minlength=n_rows)) - counts
    ranks: NDArray[np.int64] = np.arange(len(row)) + (start - before)[row]
    return ranks
