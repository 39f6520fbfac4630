"""Greedy coverage on the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


@torch.no_grad()
def coverage_select(similarity: Tensor, k: int, quality: Tensor | None, mask: Tensor | None) -> Tensor:
    picks = torch.full((len(similarity), k), -1)
    for i, image in enumerate(similarity):
        scores = image.to(torch.promote_types(image.dtype, torch.float32)).T.contiguous().cpu().numpy()
        factor = np.ones(len(scores)) if quality is None else quality[i].double().cpu().numpy()
        candidates = np.arange(len(scores)) if mask is None else mask[i].nonzero()[:, 0].cpu().numpy()
        order = _most_covering(scores[candidates], factor[candidates].astype(scores.dtype), min(k, len(candidates)))
        picks[i, : len(order)] = torch.from_numpy(candidates[order])
    return picks.to(similarity.device)


def _most_covering(scores: np.ndarray, factor: np.ndarray, k: int) -> np.ndarray:
    """(k,) int64 picks of N candidates.

    A gain computed before a pick is an upper bound of the gain after it, since both are summed in the same order. The
    largest bounds are computed again until the largest value of all is an up-to-date gain.

    Args:
        scores: (N, R), similarity of each candidate to each target.
        factor: (N,), factors of the gains.
        k: number of picks.
    """
    covered, picks = np.zeros(scores.shape[1], scores.dtype), np.empty(k, np.int64)

    def gains(of: Any) -> np.ndarray:
        gain: np.ndarray = np.maximum(scores[of] - covered, 0).sum(1) * factor[of]
        return gain

    bound = gains(slice(None))
    fresh = np.ones(len(bound), bool)
    n_again = max(8, min(64, len(bound) // 16))
    for step in range(k):
        while not fresh[best := int(bound.argmax())]:
            stale = np.where(fresh, -np.inf, bound)
            again = np.argpartition(stale, -n_again)[-n_again:] if n_again < len(stale) else np.arange(len(stale))
            again = again[~fresh[again]]
            bound[again] = gains(again)
            fresh[again] = True
        picks[step] = best
        np.maximum(covered, scores[best], out=covered)
        bound[best] = -np.inf
        fresh[:] = False
        fresh[picks[: step + 1]] = True
    return picks
