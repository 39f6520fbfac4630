"""Max-min diversity of one long input, in memory that grows with its tokens only.

A token's score is its largest similarity to a pick. Scores only grow, so a score that counts the first picks alone is
a lower bound of the score. The tokens with the lowest bounds are brought up to date together, and the next picks are
among them for as long as no other token's bound is lower. Most similarities are never computed.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .products import product, with_lengths

_COLUMNS, _ROWS = 1024, 2048  # sides of a block of similarities
_SETTLED = 32  # tokens whose nearest neighbour is looked for among all tokens at once
_GROUPS = (256, 2048)  # least and most tokens of a group that picks are made from


def farthest_tokens(unit: Tensor, norms: Tensor | None, length: float, k: int, first: list[int] | None) -> np.ndarray:
    """(k,) int64 picks, as `max_min_select` defines them.

    Args:
        unit: (N, D) float32 unit vectors, finite.
        norms: (N,) their lengths in units of the mean, if lengths count.
        length: weight of lengths.
        k: number of picks.
        first: the first picks; None: the token least similar to its nearest neighbour.
    """
    similarities = _Similarities(unit, norms, length)
    picked = _Picked(similarities, k, [_most_isolated(similarities)] if first is None else first)
    while picked.count < k:
        picked.pick_from(picked.lowest())
    return picked.picks


class _Similarities:
    """Similarities between tokens, computed when they are asked for."""

    def __init__(self, unit: Tensor, norms: Tensor | None, length: float):
        self.unit, self.norms, self.length = unit, norms, length

    def __len__(self) -> int:
        return len(self.unit)

    def __call__(self, rows: Tensor, columns: Tensor | slice) -> Tensor:
        """(M, K) similarities of the tokens at (M,) int64 `rows` to those of `columns`."""
        block = product(self.unit[rows], self.unit[columns])
        if self.norms is not None:
            block = with_lengths(block, self.norms[rows][:, None], self.norms[columns], self.length)
        return block


def _most_isolated(similarities: _Similarities) -> int:
    """The token least similar to its nearest neighbour, the lowest index among equals.

    A token's largest similarity so far is a lower bound. Tokens whose bound is above the least similarity known of any
    token leave, and only the others are compared with further tokens.
    """
    n, device = len(similarities), similarities.unit.device
    nearest = torch.full((n,), -torch.inf, device=device)
    remaining = torch.arange(n, device=device)
    least, best, neighbour = np.inf, n, n
    for columns in _scattered(n, device).split(_COLUMNS):
        if len(remaining) <= _SETTLED:
            break
        for rows in remaining.split(_ROWS):
            block = similarities(rows, columns).masked_fill_(rows[:, None] == columns, -torch.inf)
            nearest[rows] = torch.maximum(nearest[rows], block.amax(1))
            nearest[columns] = torch.maximum(nearest[columns], block.amax(0))
        some = remaining[nearest[remaining].topk(_SETTLED, largest=False).indices.sort().values]
        nearest[some], of = _neighbours(similarities, some)
        at = int(nearest[some].argmin())
        if (float(nearest[some[at]]), int(some[at])) < (least, best):
            least, best, neighbour = float(nearest[some[at]]), int(some[at]), int(of[at])
        bound = nearest[remaining]
        remaining = remaining[(bound < least) | (bound == least) & (remaining < best)]
    if len(remaining):
        value, of = _neighbours(similarities, remaining)
        at = int(value.argmin())
        if (float(value[at]), int(remaining[at])) < (least, best):
            least, best, neighbour = float(value[at]), int(remaining[at]), int(of[at])
    # Two tokens that are each other's nearest are a tie, whatever rounding makes of the two products.
    if neighbour < best:
        pair = torch.tensor([neighbour], device=device)
        others = similarities(pair, slice(None))[0]
        others[neighbour] = others[best] = -torch.inf
        if float(others.max()) <= least:
            return neighbour
    return best


def _scattered(n: int, device: torch.device) -> Tensor:
    """(n,) int64, all indices below n; any of them in a row are spread over the whole range."""
    return ((torch.arange(n, device=device) * 2654435769) & 0xFFFFFFFF).argsort()


def _neighbours(similarities: _Similarities, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """(M,) largest similarities of (M,) tokens to another one, and (M,) int64 which one."""
    values, indices = [], []
    for some in tokens.split(_SETTLED):
        block = similarities(some, slice(None))
        block.scatter_(1, some[:, None], -torch.inf)
        most = block.max(1)
        values.append(most.values)
        indices.append(most.indices)
    return torch.cat(values), torch.cat(indices)


class _Picked:
    """Picks so far, and lower bounds of all tokens' scores.

    Attributes:
        picks: (k,) int64, filled up to `count`.
        score: (N,) float32, the largest similarity to the first picks; infinite for tokens that are picked.
        seen: (N,) int64, how many picks the score counts.
    """

    def __init__(self, similarities: _Similarities, k: int, first: list[int]):
        n = len(similarities)
        self.similarities = similarities
        self.group_size = min(max(n // 16, _GROUPS[0]), _GROUPS[1])
        self.picks, self.count = np.empty(k, np.int64), min(k, len(first))
        self.picks[: self.count] = first[:k]
        self.score, self.seen = np.full(n, -np.inf, np.float32), np.zeros(n, np.int64)
        self.score[self.picks[: self.count]] = np.inf
        if self.count < k:
            self._refresh(np.arange(n))

    def lowest(self) -> np.ndarray:
        """Ascending indices of the group of tokens with the lowest scores, which are up to date afterwards."""
        while True:
            group = _lowest(self.score, self.group_size)
            stale = group[self.seen[group] < self.count]
            if len(stale) == 0:
                return group
            self._refresh(stale)

    def _refresh(self, tokens: np.ndarray) -> None:
        """Bring the scores of tokens up to date."""
        device = self.similarities.unit.device
        for seen in np.unique(self.seen[tokens]):
            for some in np.array_split(those := tokens[self.seen[tokens] == seen], -(-len(those) // _ROWS)):
                rows = torch.from_numpy(some).to(device)
                for start in range(seen, self.count, _COLUMNS):
                    new = torch.from_numpy(self.picks[start : min(self.count, start + _COLUMNS)]).to(device)
                    to_picks = self.similarities(rows, new).amax(1).cpu().numpy()
                    self.score[some] = np.maximum(self.score[some], to_picks)
        self.seen[tokens] = self.count

    def pick_from(self, group: np.ndarray) -> None:
        """Pick from a group, until a token outside it could be next."""
        outside = self.score.copy()
        outside[group] = np.inf
        other = int(outside.argmin())
        bound = outside[other]
        index = torch.from_numpy(group).to(self.similarities.unit.device)
        between = self.similarities(index, index).cpu().numpy()
        score = self.score[group]
        while self.count < len(self.picks):
            at = int(score.argmin())
            if score[at] > bound or (score[at] == bound and group[at] > other):
                break
            self.picks[self.count] = group[at]
            self.count += 1
            np.maximum(score, between[at], out=score)
            score[at] = np.inf  # never picked twice
        self.score[group] = score
        self.seen[group] = self.count


def _lowest(score: np.ndarray, count: int) -> np.ndarray:
    """Ascending indices of the `count` lowest scores, or of all finite ones; the lowest index first among equals."""
    if count < len(score):
        limit = np.partition(score, count - 1)[count - 1]
        below = np.flatnonzero(score < limit)
        ties = np.flatnonzero(score == limit)[: count - len(below)]
        group = np.sort(np.concatenate([below, ties]))
    else:
        group = np.arange(len(score))
    finite: np.ndarray = group[score[group] < np.inf]
    return finite
