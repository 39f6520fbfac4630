"""The ops for the CPU and for devices without Triton.

Matrix products run on the tensors' own device. Greedy loops run on the host in NumPy: a step is little more than the
overhead of a call, which is a third of torch's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .reference import NO_VARIANCE

_GRAM_LIMIT = 4096  # tokens; above, N x N float32 would take more than 64 MB
_GRAM_GAIN = 12  # a matrix product is this many times as fast per operation as matrix times vector
_GRAM_BLOCKS = 6  # blocks along a side of the matrix of similarities
_TILE = 1 << 22  # elements of a tile of scores: 16 MB in float32, whatever N is


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
    n, unit = len(features), _unit(features)
    norms = None
    if length:
        norms = torch.linalg.vector_norm(features.float(), dim=-1)
        norms /= norms.mean().clamp(min=1e-12)
    row_of: Callable[[int], np.ndarray]
    if n <= _GRAM_LIMIT and (first is None or k * _GRAM_GAIN > n):
        gram = _gram(unit)
        if norms is not None:
            gram = _with_lengths(gram, norms, slice(None), length)
        if first is None:
            gram.fill_diagonal_(-torch.inf)  # a token is not its own neighbour
            first = [int(gram.amax(1).argmin())]
        row_of = gram.cpu().numpy().__getitem__
    else:
        if first is None:
            first = [int(_nearest_similarity(unit, norms, length).argmin())]
        row = torch.empty(n, device=unit.device)
        row_of = lambda i: _with_lengths(torch.mv(unit, unit[i], out=row), norms, i, length).cpu().numpy()
    picks = np.empty(k, np.int64)
    picks[0] = last = first[0]
    score = np.full(n, 0 if update is np.add else -np.inf, np.float32)
    for i in range(1, k):
        update(score, row_of(last), out=score)
        score[last] = np.inf  # never picked twice
        picks[i] = last = first[i] if i < len(first) else int(score.argmin())
    return picks


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
    unit = _unit(features) * quality.float()[:, None]
    n = len(unit)
    row_of: Callable[[int], np.ndarray]
    if n <= _GRAM_LIMIT and k * _GRAM_GAIN > n:
        row_of = _gram(unit).cpu().numpy().__getitem__
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


def _unit(features: Tensor) -> Tensor:
    """(N, D) float32 unit vectors; zero vectors stay zero."""
    unit = features.float()
    length = torch.linalg.vector_norm(unit, dim=-1, keepdim=True).clamp_(min=1e-12)
    return torch.div(unit, length, out=None if unit is features else unit)


def _gram(unit: Tensor) -> Tensor:
    """(N, N) products of (N, D) vectors: blocks on and below the diagonal are computed, the others mirrored.

    Small matrices are a single block. Blocks begin where the tiles of the BLAS product do, so that equal tokens get
    equal sums.
    """
    n = len(unit)
    gram = unit.new_empty(n, n)
    for start in range(0, n, step := max(96, -(-n // (32 * _GRAM_BLOCKS)) * 32)):
        stop = start + step
        torch.mm(unit[start:], unit[start:stop].T, out=gram[start:, start:stop])
        block = gram[start:stop, start:stop]  # symmetric but for rounding; each other's nearest must tie
        block.copy_(torch.maximum(block, block.T))
        gram[start:stop, stop:] = gram[stop:, start:stop].T
    return gram


def _with_lengths(cosine: Tensor, norms: Tensor | None, i: int | slice, length: float) -> Tensor:
    """Similarities with lengths, computed in place.

    Args:
        cosine: (N,) cosine similarities of token `i`, or (M, N) of the M tokens of a slice.
        norms: (N,) lengths in units of their mean; None: cosines are returned unchanged.
        i: the token, or the tokens.
        length: weight of lengths.
    """
    if norms is None:
        return cosine
    norm = norms[i] if isinstance(i, int) else norms[i, None]
    cosine *= (1 - length) + length * (norm * norms)
    cosine -= length / 2 * (norm**2 + norms**2)
    return cosine


def _nearest_similarity(unit: Tensor, norms: Tensor | None = None, length: float = 0.0) -> Tensor:
    """(N,) similarity of each token to its nearest neighbour, in memory that grows with N only."""
    n = len(unit)
    best = unit.new_full((n,), -torch.inf)
    for start in range(0, n, step := max(1, _TILE // n)):
        block = unit[start : start + step] @ unit[start:].T
        if norms is not None:
            block = _with_lengths(block, norms[start:], slice(0, len(block)), length)
        block.fill_diagonal_(-torch.inf)
        of_columns = best[start:]
        torch.maximum(of_columns, block.amax(0), out=of_columns)
        of_rows = of_columns[:step]
        torch.maximum(of_rows, block.amax(1), out=of_rows)
    return best


@torch.no_grad()
def topk_gather(
    scores: Tensor, features: Tensor, k: int, mask: Tensor | None, positions: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    scores = scores.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=torch.finfo(scores.dtype).min)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    least = scores.topk(k, sorted=False).values.amin(1, keepdim=True)
    above, ties = scores > least, scores == least
    kept = above | ties & (ties.cumsum(1) <= k - above.sum(1, keepdim=True))
    indices = kept.nonzero()[:, 1].clone().view(len(scores), k)
    image = torch.arange(len(scores), device=scores.device)[:, None]
    gathered = features[image, indices]
    moved = indices.new_empty(0, *indices.shape) if positions is None else positions[:, image, indices]
    if mask is not None:
        # Tokens that are no candidates go to the end.
        surplus = ~mask[image, indices]
        order = surplus.int().sort(dim=1, stable=True).indices
        surplus, indices = surplus.gather(1, order), indices.gather(1, order)
        gathered, moved = gathered[image, order], moved[:, image, order]
        indices[surplus], gathered[surplus], moved[:, surplus] = -1, 0, 0
    return indices, gathered, moved


@torch.no_grad()
def attention_received(query: Tensor, key: Tensor, rows: Tensor | None, mask: Tensor | None, scaling: float) -> Tensor:
    dtype = torch.promote_types(query.dtype, torch.float32)
    batch, heads, length, width = query.shape
    groups, n = key.shape[1:3]
    weights = None  # (B, Q), where rows of the batch have different queries
    index = torch.arange(length, device=query.device)
    if rows is not None and rows.dtype == torch.bool:
        weights, index = rows, rows.any(0).nonzero()[:, 0]
    elif rows is not None:
        index = rows.to(query.device)
    keys = key.to(dtype).mT
    received = torch.zeros(batch, n, dtype=dtype, device=query.device)
    step = max(1, _TILE // max(1, batch * heads * n))
    for some in index.split(step):
        part = query[:, :, some].to(dtype).view(batch, groups, -1, width)  # query heads that share a key head
        scores = (part @ keys).view(batch, heads, len(some), n).mul_(scaling)
        if mask is not None:
            visible = mask[:, None, None] if mask.ndim == 2 else mask[:, None, some]
            scores = scores.masked_fill_(~visible, -torch.inf)
        attention = scores.softmax(-1)
        if mask is not None:
            attention = attention.nan_to_num_(0)  # a query that may attend to no key
        if weights is not None:
            attention = attention * weights[:, None, some, None]
        received += attention.mean(1).sum(1)
    count = len(index) if weights is None else weights.sum(1, keepdim=True)
    return received / max(count, 1) if isinstance(count, int) else received / count.clamp(min=1)
