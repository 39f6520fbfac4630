"""Greedy DPP on the host."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..reference import NO_VARIANCE
from . import products


@torch.no_grad()
def dpp_select(features: Tensor, quality: Tensor, k: int, mask: Tensor | None) -> Tensor:
    picks = torch.full((len(features), k), -1)
    for i, (image, weight) in enumerate(zip(features, quality, strict=True)):
        candidates = torch.arange(len(image), device=image.device) if mask is None else mask[i].nonzero()[:, 0]
        if len(candidates):
            order = _most_volume(image[candidates], weight[candidates], min(k, len(candidates)))
            picks[i, : len(order)] = candidates.cpu()[torch.from_numpy(order)]
    return picks.to(features.device)


def _most_volume(features: Tensor, quality: Tensor, k: int) -> np.ndarray:
    """(k,) int64 picks of (N, D) tokens with (N,) weights, by a Cholesky factor that grows by a row at each pick."""
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
        picks[step] = best = int(score.argmax())
        taken[best] = True
        if score[best] > 0:
            row = row_of(best) - factor[:step, best] @ factor[:step]
            factor[step] = row / np.sqrt(score[best])
            variance -= factor[step] ** 2
    return picks
