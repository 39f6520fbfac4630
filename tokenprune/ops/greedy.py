"""Greedy diversity selection."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_GRAM_LIMIT = 4096  # above, N x N float32 would take more than 64 MB


@torch.no_grad()
def max_min_select(features: Tensor, k: int, first: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """Greedy max-min diversity (farthest point) on cosine distance.

    Args:
        features: (B, N, D), any floating dtype; distances are float32. A zero vector has distance 1
            from everything.
        k: tokens to pick, 1 <= k <= the number of candidates of every row.
        first: (B,) int64, the first pick of each row. None: the candidate farthest from its nearest
            neighbour (DivPrune, arXiv:2503.02175, Algorithm 1).
        mask: (B, N) bool, True for candidates. None: all.

    Returns:
        (B, k) int64, in the order picked, no index twice, lowest index first among equals.

    Raises:
        ValueError: if k or a shape does not fit.
    """
    _check(features, k, mask)
    batch, n, _ = features.shape
    unit = F.normalize(features.float(), dim=-1)
    distance = 1 - unit @ unit.mT
    excluded = torch.zeros(batch, n, dtype=torch.bool, device=features.device) if mask is None else ~mask
    if first is None:
        # inf on the diagonal and on non-candidates: neither is anybody's nearest neighbour
        ignored = torch.eye(n, dtype=torch.bool, device=features.device) | excluded[:, None]
        isolation = distance.masked_fill(ignored, torch.inf).amin(-1)
        first = isolation.masked_fill(excluded, -torch.inf).argmax(-1)
    nearest = torch.full((batch, n), torch.inf, device=features.device).masked_fill(excluded, -torch.inf)
    if features.device.type == "cpu":
        return _greedy_host(distance, nearest, first, k, np.minimum)
    rows = torch.arange(batch, device=features.device)
    return _greedy_device(lambda last: distance[rows, last], nearest, first, k, torch.minimum)


@torch.no_grad()
def max_sum_select(features: Tensor, k: int, first: Tensor, mask: Tensor | None = None) -> Tensor:
    """Greedy max-sum diversity: each pick has the smallest summed cosine similarity to all picks so far.

    Args:
        features: (B, N, D), any floating dtype; similarities are float32.
        k: tokens to pick, 1 <= k <= the number of candidates of every row.
        first: (B,) int64, the first pick of each row.
        mask: (B, N) bool, True for candidates. None: all.

    Returns:
        (B, k) int64, in the order picked, no index twice, lowest index first among equals.

    Raises:
        ValueError: if k or a shape does not fit.

    Cost is O(k N D); no N x N matrix is made above 4096 tokens, nor on a GPU (ToDRE,
    arXiv:2505.18757v2, Algorithm 1).
    """
    _check(features, k, mask)
    unit = F.normalize(features.float(), dim=-1)
    # Unlikeness, so that the largest sum is picked: negating floats loses nothing.
    total = torch.zeros(unit.shape[:2], device=unit.device)
    if mask is not None:
        total = total.masked_fill(~mask, -torch.inf)
    if unit.device.type == "cpu" and unit.shape[1] <= _GRAM_LIMIT:
        return _greedy_host(-(unit @ unit.mT), total, first, k, np.add)
    rows = torch.arange(len(unit), device=unit.device)
    return _greedy_device(lambda last: -(unit @ unit[rows, last, :, None]).squeeze(-1), total, first, k, torch.add)


def _greedy_device(
    row_of: Callable[[Tensor], Tensor],
    score: Tensor,
    first: Tensor,
    k: int,
    update: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """The greedy loop in torch: update the scores with the last pick's row, pick the largest.

    Args:
        row_of: the rows of (B,) picks, (B, N).
        score: (B, N), -inf where excluded.
        first: (B,) int64.
        k: tokens to pick.
        update: of scores and rows; must leave -inf as it is.

    Returns:
        (B, k) int64.
    """
    picks = [first]
    for _ in range(1, k):
        score = update(score, row_of(picks[-1]))
        score = score.scatter(1, picks[-1][:, None], -torch.inf)  # never twice, whatever the rows say
        picks.append(score.argmax(-1))
    return torch.stack(picks, 1)


def _greedy_host(matrix: Tensor, score: Tensor, first: Tensor, k: int, update: np.ufunc) -> Tensor:
    """The same on the CPU, where NumPy's calls cost a third of torch's and a step is little else.

    The rows are those of a (B, N, N) matrix: one BLAS call, not k.
    """
    picks = np.empty((len(matrix), k), np.int64)
    for picked, rows, scores, start in zip(picks, matrix.numpy(), score.numpy(), first.tolist(), strict=True):
        picked[0] = last = start
        for i in range(1, k):
            update(scores, rows[last], out=scores)
            scores[last] = -np.inf
            picked[i] = last = scores.argmax()
    return torch.from_numpy(picks)


def _check(features: Tensor, k: int, mask: Tensor | None) -> None:
    if features.ndim != 3:
        raise ValueError(f"features must be (B, N, D), got shape {tuple(features.shape)}")
    fewest = features.shape[1] if mask is None else int(mask.sum(1).min())
    if not 1 <= k <= fewest:
        raise ValueError(f"k={k} must be between 1 and the number of candidates, {fewest}")
