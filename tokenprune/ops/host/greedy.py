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

_STACKED_LIMIT = 1024  # tokens; up to here the images of a batch are picked from together


@torch.no_grad()
def max_min_select(features: Tensor, k: int, first: Tensor | None, mask: Tensor | None, length: float) -> Tensor:
    return _per_image(features, k, first, mask, np.maximum, length)


@torch.no_grad()
def max_sum_select(features: Tensor, k: int, first: Tensor, mask: Tensor | None) -> Tensor:
    return _per_image(features, k, first, mask, np.add)


def _per_image(
    features: Tensor, k: int, first: Tensor | None, mask: Tensor | None, update: np.ufunc, length: float = 0.0
) -> Tensor:
    starts = [None if first is None else [j for j in first[i].tolist() if j >= 0] for i in range(len(features))]
    n = features.shape[1]
    together = len(features) > 1 and n <= min(_STACKED_LIMIT, products.GRAM_LIMIT)
    if mask is None and together and (first is None or k * products.GRAM_GAIN > n):
        return torch.from_numpy(_stacked(features, k, starts, update, length)).to(features.device)
    picks = torch.full((len(features), k), -1)
    for i, (image, start) in enumerate(zip(features, starts, strict=True)):
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
        similarities, first = _all_similarities(unit, norms, first, length)
        row_of = similarities.__getitem__
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


def _all_similarities(
    unit: Tensor, norms: Tensor | None, first: list[int] | None, length: float
) -> tuple[np.ndarray, list[int]]:
    """(N, N) similarities of an image's tokens, and its first picks."""
    gram = products.gram(unit)
    if norms is not None:
        gram = products.with_lengths(gram, norms[:, None], norms, length)
    if first is None:
        gram.fill_diagonal_(-torch.inf)  # a token is not its own neighbour
        first = [int(gram.amax(1).argmin())]
    return gram.cpu().numpy(), first


def _stacked(features: Tensor, k: int, starts: list[list[int] | None], update: np.ufunc, length: float) -> np.ndarray:
    """(B, k) int64 picks of `_greedy` for each of (B, N, D) images of one size, a step of all images at a time."""
    matrices, firsts = [], []
    for image, start in zip(features, starts, strict=True):
        norms = products.mean_lengths(image) if length else None
        matrix, first = _all_similarities(products.unit_vectors(image), norms, start, length)
        matrices.append(matrix)
        firsts.append(first)
    similarities, images = np.stack(matrices), np.arange(len(matrices))
    n_first = max(map(len, firsts))
    picks = np.empty((len(images), k), np.int64)
    picks[:, 0] = last = np.array([first[0] for first in firsts])
    score = np.full(similarities.shape[:2], 0 if update is np.add else -np.inf, np.float32)
    for i in range(1, k):
        update(score, similarities[images, last], out=score)
        score[images, last] = np.inf  # never picked twice
        last = score.argmin(1)
        for image, first in enumerate(firsts if i < n_first else ()):
            last[image] = first[i] if i < len(first) else last[image]
        picks[:, i] = last
    return picks
