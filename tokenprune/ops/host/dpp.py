"""Greedy DPP on the host."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..reference import NO_VARIANCE, SPREAD
from . import products


@torch.no_grad()
def dpp_select(features: Tensor, quality: Tensor, k: int, mask: Tensor | None) -> Tensor:
    picks = torch.full((len(features), k), -1)
    for i, (image, weight) in enumerate(zip(features, quality, strict=True)):
        candidates = torch.arange(len(image), device=image.device) if mask is None else mask[i].nonzero()[:, 0]
        if len(candidates):
            index = candidates.cpu().numpy()
            order = _most_volume(image[candidates], weight[candidates], index * SPREAD % 2**32, min(k, len(index)))
            picks[i, : len(order)] = torch.from_numpy(index[order])
    return picks.to(features.device)


def _most_volume(features: Tensor, quality: Tensor, spread: np.ndarray, k: int) -> np.ndarray:
    """(k,) int64 picks, by a Cholesky factor that grows by a row at each pick.

    Args:
        features: (N, D).
        quality: (N,) weights.
        spread: (N,), tokens without variance are picked by this, ascending.
        k: number of picks.
    """
    unit = products.unit_vectors(features) * quality.float()[:, None]
    n = len(unit)
    row_of: Callable[[int], np.ndarray]
    if n <= products.GRAM_LIMIT and k * products.GRAM_GAIN > n:
        row_of = products.gram(unit).cpu().numpy().__getitem__
    else:
        row_of = lambda i: torch.mv(unit, unit[i]).cpu().numpy()
    prior = unit.square().sum(1).cpu().numpy()  # variances without picks
    least, variance = NO_VARIANCE * prior, prior.copy()
    factor, picks = np.zeros((k, n), np.float32), np.empty(k, np.int64)
    taken = np.zeros(n, bool)
    for step in range(k):
        score = np.where(variance > least, variance, 0)
        score[taken] = -np.inf
        best = int(score.argmax())
        if not score[best] > 0:  # nor will any token have variance after further picks
            rest = np.flatnonzero(~taken)
            picks[step:] = rest[spread[rest].argsort()][: k - step]
            break
        picks[step], taken[best] = best, True
        row = row_of(best) - factor[:step, best] @ factor[:step]
        factor[step] = row / np.sqrt(score[best])
        variance -= factor[step] ** 2
    return picks
