"""Greedy coverage on the host, by a matrix of similarities."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import TokenCover
from . import products
from .covering import MATRIX_BYTES, covering_tokens
from .targets import TokenTargets


@torch.no_grad()
def coverage_select(similarity: Tensor, k: int, quality: Tensor | None, mask: Tensor | None) -> Tensor:
    picks = torch.full((len(similarity), k), -1)
    for i, image in enumerate(similarity):
        scores = _by_candidate(image.to(torch.promote_types(image.dtype, torch.float32))).cpu().numpy()
        factor = np.ones(len(scores)) if quality is None else quality[i].double().cpu().numpy()
        candidates = np.arange(len(scores)) if mask is None else mask[i].nonzero()[:, 0].cpu().numpy()
        some = scores if mask is None else scores[candidates]
        order = _most_covering(some, factor[candidates].astype(scores.dtype), min(k, len(candidates)))
        picks[i, : len(order)] = torch.from_numpy(candidates[order])
    return picks.to(similarity.device)


def _by_candidate(similarity: Tensor) -> Tensor:
    """(N, R), contiguous, of (R, N); without a copy if the matrix is symmetric, or transposed already."""
    if similarity.shape[0] == similarity.shape[1] and similarity.is_contiguous() and similarity.device.type == "cpu":
        step = max(1, products.TILE // len(similarity))
        if all(
            torch.equal(similarity[start : start + step], similarity[:, start : start + step].T)
            for start in range(0, len(similarity), step)
        ):
            return similarity
    return similarity.T.contiguous()


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
        more = scores[of] - covered
        gain: np.ndarray = np.maximum(more, 0, out=more).sum(1) * factor[of]
        return gain

    step = max(1, products.TILE // max(1, scores.shape[1]))
    bound = np.empty(len(scores), scores.dtype)
    for start in range(0, len(scores), step):
        bound[start : start + step] = gains(slice(start, start + step))
    fresh = np.ones(len(bound), bool)
    n_again = max(8, min(64, len(bound) // 16))
    for i in range(k):
        while not fresh[best := int(bound.argmax())]:
            stale = np.where(fresh, -np.inf, bound)
            again = np.argpartition(stale, -n_again)[-n_again:] if n_again < len(stale) else np.arange(len(stale))
            again = again[~fresh[again]]
            bound[again] = gains(again)
            fresh[again] = True
        picks[i] = best
        np.maximum(covered, scores[best], out=covered)
        bound[best] = -np.inf
        fresh[:] = False
        fresh[picks[: i + 1]] = True
    return picks


@torch.no_grad()
def token_coverage_select(
    features: Tensor,
    k: int,
    quality: Tensor | None,
    weight: Tensor | None,
    cover: TokenCover,
    others: Tensor | None,
) -> Tensor:
    picks = torch.empty(len(features), k, dtype=torch.int64)
    for i, image in enumerate(features):
        targets = TokenTargets(
            products.unit_vectors(image),
            None if weight is None else weight[i].float(),
            *cover,
            None if others is None else others[i].float(),
        )
        factor = np.ones(len(image), np.float32) if quality is None else quality[i].float().cpu().numpy()
        if 4 * len(image) * targets.count <= MATRIX_BYTES:
            order = _most_covering(targets.matrix().cpu().numpy(), factor, k)
        else:
            order = covering_tokens(targets, factor, k)
        picks[i] = torch.from_numpy(order)
    return picks.to(features.device)
