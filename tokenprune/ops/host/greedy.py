"""Greedy diversity on the host.

Inputs up to `GRAM_LIMIT` tokens have the matrix of all similarities computed. Longer ones go to `farthest.py`, or read
one row of similarities for each pick.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from . import products
from .farthest import farthest_tokens


@torch.no_grad()
def max_min_select(features: Tensor, k: int, first: Tensor | None, mask: Tensor | None, length: float) -> Tensor:
    return _per_image(features, k, first, mask, np.maximum, length)


@torch.no_grad()
def max_sum_select(features: Tensor, k: int, first: Tensor, mask: Tensor | None) -> Tensor:
    return _per_image(features, k, first, mask, np.add)


def _per_image(
    features: Tensor, k: int, first: Tensor | None, mask: Tensor | None, update: np.ufunc, length: float = 0.0
) -> Tensor:
    picks = torch.full((len(features), k), -1)
    for i, image in enumerate(features):
        start = None if first is None else [j for j in first[i].tolist() if j >= 0]
        if mask is None:
            picks[i] = torch.from_numpy(_greedy(image, k, start, update, length))
            continue
        candidates = mask[i].nonzero()[:, 0]
        if len(candidates) == 0:
            continue
        if start is not None:
            start = [int((candidates < j).sum()) for j in start]
        order = torch.from_numpy(_greedy(image[candidates], min(k, len(candidates)), start, update, length))
        picks[i, : len(order)] = candidates.cpu()[order]
    return picks.to(features.device)


def _greedy(features: Tensor, k: int, first: list[int] | None, update: np.ufunc, length: float) -> np.ndarray:
    """(k,) int64 picks of one image: those of `first`, then always the token with the smallest score.

    Args:
        features: (N, D).
        k: number of picks.
        first: the first picks; None: the token least similar to its nearest neighbour.
        update: merges the scores with the similarities to a pick.
        length: weight of lengths; similarity is minus the distance of `max_min_select`, up to a constant.
    """
    n, unit = len(features), products.unit_vectors(features)
    norms = products.mean_lengths(features) if length else None
    if n > products.GRAM_LIMIT and update is np.maximum:
        if bool(torch.isfinite(unit.sum())):
            return farthest_tokens(unit, norms, length, k, first)
        first = first or [0]  # one NaN makes every token's nearest neighbour NaN
    row_of: Callable[[int], np.ndarray]
    if n <= products.GRAM_LIMIT and (first is None or k * products.GRAM_GAIN > n):
        gram = products.gram(unit)
        if norms is not None:
            gram = products.with_lengths(gram, norms[:, None], norms, length)
        if first is None:
            gram.fill_diagonal_(-torch.inf)  # a token is not its own neighbour
            first = [int(gram.amax(1).argmin())]
        row_of = gram.cpu().numpy().__getitem__
    else:
        row = torch.empty(n, device=unit.device)

        def row_of(i: int) -> np.ndarray:
            cosine = torch.mv(unit, unit[i], out=row)
            if norms is not None:
                cosine = products.with_lengths(cosine, norms[i], norms, length)
            return cosine.cpu().numpy()

    assert first is not None
    picks = np.empty(k, np.int64)
    picks[0] = last = first[0]
    score = np.full(n, 0 if update is np.add else -np.inf, np.float32)
    for i in range(1, k):
        update(score, row_of(last), out=score)
        score[last] = np.inf  # never picked twice
        picks[i] = last = first[i] if i < len(first) else int(score.argmin())
    return picks
