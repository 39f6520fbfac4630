"""Ops that choose on the host: the CPU's path, and that of devices without Triton.

Products run on the tensors' own device; the greedy loop is NumPy's, whose calls cost a third of
torch's, and a step is little else.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .reference import NO_VARIANCE

_GRAM_LIMIT = 4096  # tokens; above, N x N float32 would take more than 64 MB
_GRAM_GAIN = 12  # a product of matrices does this many times the work of matrix by vector in its time
_GRAM_BLOCKS = 6
_TILE = 1 << 22  # elements of a tile of attention scores: 16 MB in float32, whatever N is


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
    """k of the (N, D) tokens: from `first` on, the one with the smallest score, which picks update.

    `update` merges scores with the similarities of a pick. Without `first`: the token least like its
    nearest neighbour. With `length`, similarity is the distance that counts lengths, turned.
    """
    n, unit = len(features), _unit(features)
    own = None
    if length:
        own = torch.linalg.vector_norm(features.float(), dim=-1)
        own /= own.mean().clamp(min=1e-12)
    row_of: Callable[[int], np.ndarray]
    if n <= _GRAM_LIMIT and (first is None or k * _GRAM_GAIN > n):
        gram = _gram(unit)
        if own is not None:
            gram = _seen(gram, own, slice(None), length)
        if first is None:
            gram.fill_diagonal_(-torch.inf)  # nobody is their own neighbour
            first = [int(gram.amax(1).argmin())]
        row_of = gram.cpu().numpy().__getitem__
    else:
        if first is None:
            first = [int(_likeness(unit, own, length).argmin())]
        row = torch.empty(n, device=unit.device)
        row_of = lambda i: _seen(torch.mv(unit, unit[i], out=row), own, i, length).cpu().numpy()
    picks = np.empty(k, np.int64)
    picks[0] = last = first[0]
    score = np.full(n, 0 if update is np.add else -np.inf, np.float32)
    for i in range(1, k):
        update(score, row_of(last), out=score)
        score[last] = np.inf  # never twice, whatever the rows say
        picks[i] = last = first[i] if i < len(first) else int(score.argmin())
    return picks


@torch.no_grad()
def dpp_select(features: Tensor, quality: Tensor, k: int, mask: Tensor | None) -> Tensor:
    picks = torch.full((len(features), k), -1)
    for i, (image, wanted) in enumerate(zip(features, quality, strict=True)):
        candidates = torch.arange(len(image), device=image.device) if mask is None else mask[i].nonzero()[:, 0]
        if len(candidates):
            order = _most_volume(image[candidates], wanted[candidates], min(k, len(candidates)))
            picks[i, : len(order)] = candidates.cpu()[torch.from_numpy(order)]
    return picks.to(features.device)


def _most_volume(features: Tensor, quality: Tensor, k: int) -> np.ndarray:
    """k of the (N, D) tokens by a Cholesky factor that grows by a row at each pick."""
    unit = _unit(features) * quality.float()[:, None]
    n = len(unit)
    row_of: Callable[[int], np.ndarray]
    if n <= _GRAM_LIMIT and k * _GRAM_GAIN > n:
        row_of = _gram(unit).cpu().numpy().__getitem__
    else:
        row_of = lambda i: torch.mv(unit, unit[i]).cpu().numpy()
    own = unit.square().sum(1).cpu().numpy()
    least, variance = NO_VARIANCE * own, own.copy()
    factor, picks = np.zeros((k, n), np.float32), np.empty(k, np.int64)
    gone = np.zeros(n, bool)
    for step in range(k):
        left = np.where(variance > least, variance, 0)
        left[gone] = -np.inf
        picks[step] = best = int(left.argmax())
        gone[best] = True
        if left[best] > 0:
            row = row_of(best) - factor[:step, best] @ factor[:step]
            factor[step] = row / np.sqrt(left[best])
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
    """k of N candidates, (N, R) similarities each to the targets.

    Gains of before a pick bound those after it, sums rounded alike; the best of them are computed again
    until one of the new ones is ahead of all bounds.
    """
    covered, picks = np.zeros(scores.shape[1], scores.dtype), np.empty(k, np.int64)
    gains = lambda some: np.maximum(scores[some] - covered, 0).sum(1) * factor[some]
    bound = gains(slice(None))
    fresh = np.ones(len(bound), bool)
    some = max(8, min(64, len(bound) // 16))
    for step in range(k):
        while not fresh[best := int(bound.argmax())]:
            stale = np.where(fresh, -np.inf, bound)
            again = np.argpartition(stale, -some)[-some:] if some < len(stale) else np.arange(len(stale))
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
    unit = features.float()
    length = torch.linalg.vector_norm(unit, dim=-1, keepdim=True).clamp_(min=1e-12)
    return torch.div(unit, length, out=None if unit is features else unit)


def _gram(unit: Tensor) -> Tensor:
    """All similarities, (N, N): blocks on and below the diagonal are multiplied, the others mirrored.

    Small ones in one product. Blocks begin where the product's own tiles do, so that equal tokens get
    equal sums.
    """
    n = len(unit)
    gram = unit.new_empty(n, n)
    for start in range(0, n, step := max(96, -(-n // (32 * _GRAM_BLOCKS)) * 32)):
        stop = start + step
        torch.mm(unit[start:], unit[start:stop].T, out=gram[start:, start:stop])
        block = gram[start:stop, start:stop]  # symmetric but for rounding: each other's nearest are to be a tie
        block.copy_(torch.maximum(block, block.T))
        gram[start:stop, stop:] = gram[stop:, start:stop].T
    return gram


def _seen(cosine: Tensor, own: Tensor | None, i: int | slice, length: float) -> Tensor:
    """Cosines (..., N) with token i as similarities that count lengths, in place; `own`: lengths."""
    if own is None:
        return cosine
    mine = own[i] if isinstance(i, int) else own[i, None]
    cosine *= (1 - length) + length * (mine * own)
    cosine -= length / 2 * (mine**2 + own**2)
    return cosine


def _likeness(unit: Tensor, own: Tensor | None = None, length: float = 0.0) -> Tensor:
    """Similarity (N,) of each token to its nearest neighbour, in memory that does not grow with N x N."""
    n = len(unit)
    best = unit.new_full((n,), -torch.inf)
    for start in range(0, n, step := max(1, _TILE // n)):
        block = unit[start : start + step] @ unit[start:].T
        if own is not None:
            block = _seen(block, own[start:], slice(0, len(block)), length)
        block.fill_diagonal_(-torch.inf)
        rest = best[start:]
        torch.maximum(rest, block.amax(0), out=rest)
        rest = rest[:step]
        torch.maximum(rest, block.amax(1), out=rest)
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
        # Those that were never candidates go to the end.
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
    weights = None  # (B, Q) of asked queries, where rows of the batch ask for different ones
    index = torch.arange(length, device=query.device)
    if rows is not None and rows.dtype == torch.bool:
        weights, index = rows, rows.any(0).nonzero()[:, 0]
    elif rows is not None:
        index = rows.to(query.device)
    keys = key.to(dtype).mT
    received = torch.zeros(batch, n, dtype=dtype, device=query.device)
    step = max(1, _TILE // max(1, batch * heads * n))
    for some in index.split(step):
        part = query[:, :, some].to(dtype).view(batch, groups, -1, width)  # heads that share keys, in one product
        scores = (part @ keys).view(batch, heads, len(some), n).mul_(scaling)
        if mask is not None:
            seen = mask[:, None, None] if mask.ndim == 2 else mask[:, None, some]
            scores = scores.masked_fill_(~seen, -torch.inf)
        attention = scores.softmax(-1)
        if mask is not None:
            attention = attention.nan_to_num_(0)  # a query that may look nowhere
        if weights is not None:
            attention = attention * weights[:, None, some, None]
        received += attention.mean(1).sum(1)
    count = len(index) if weights is None else weights.sum(1, keepdim=True)
    return received / max(count, 1) if isinstance(count, int) else received / count.clamp(min=1)
