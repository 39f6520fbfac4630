"""The ops in plain torch. They are slow, and define the results of every other implementation."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import TokenCover


def max_min_select(features: Tensor, k: int, first: Tensor | None, mask: Tensor | None, length: float) -> Tensor:
    """Each pick is the candidate whose nearest pick is farthest away."""
    similarity, excluded = _similarity(features, mask)
    if length:
        norms = features.float().norm(dim=-1)
        mean = norms.masked_fill(excluded, 0).sum(1, keepdim=True) / (~excluded).sum(1, keepdim=True).clamp(min=1)
        norms = norms / mean.clamp(min=1e-12)
        product, squares = norms[:, :, None] * norms[:, None], norms[:, :, None] ** 2 + norms[:, None] ** 2
        similarity = (1 - length) * similarity + length * (similarity * product - squares / 2)
    if first is None:
        # A token is not its own neighbour, and tokens that are no candidates are nobody's.
        diagonal = torch.eye(features.shape[1], dtype=torch.bool, device=features.device)
        first = similarity.masked_fill(diagonal | excluded[:, None], -torch.inf).amax(-1)
        first = first.masked_fill(excluded, torch.inf).argmin(-1, keepdim=True)
    return _greedy(similarity, excluded, first, k, lambda of_picks: of_picks.amax(-1))


def max_sum_select(features: Tensor, k: int, first: Tensor, mask: Tensor | None) -> Tensor:
    """Each pick is the candidate with the smallest summed similarity to all picks."""
    similarity, excluded = _similarity(features, mask)
    return _greedy(similarity, excluded, first, k, lambda of_picks: of_picks.sum(-1))


def topk_gather(
    scores: Tensor, features: Tensor, k: int, mask: Tensor | None, positions: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Candidates sorted by score, the first k of them in their original order."""
    n = scores.shape[1]
    mask = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask
    scores = scores.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=torch.finfo(scores.dtype).min)
    order = scores.sort(dim=1, descending=True, stable=True).indices
    order = order.gather(1, mask.gather(1, order).int().sort(dim=1, descending=True, stable=True).indices)
    picked = order[:, :k].masked_fill(~mask.gather(1, order[:, :k]), n).sort(dim=1).values
    empty = picked == n
    index = picked.masked_fill(empty, 0)
    gathered = features.gather(1, index[..., None].expand(-1, -1, features.shape[2])).masked_fill(empty[..., None], 0)
    if positions is None:
        moved = torch.empty(0, len(scores), k, dtype=torch.int64, device=scores.device)
    else:
        moved = positions.gather(2, index.expand(len(positions), -1, -1)).masked_fill(empty, 0)
    return picked.masked_fill(empty, -1), gathered, moved


def attention_received(query: Tensor, key: Tensor, rows: Tensor | None, mask: Tensor | None, scaling: float) -> Tensor:
    """The attention map, averaged over heads and queries."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    batch, heads = query.shape[:2]
    keys = key.to(dtype).repeat_interleave(heads // key.shape[1], 1)
    scores = query.to(dtype) @ keys.mT * scaling
    if mask is not None:
        scores = scores.masked_fill(~(mask[:, None] if mask.ndim == 3 else mask[:, None, None]), -torch.inf)
    attention = scores.softmax(-1).nan_to_num(0).mean(1)  # NaN: a query that may attend to no key
    if rows is None:
        return attention.mean(1)
    if rows.dtype != torch.bool:
        return attention[:, rows].mean(1) if len(rows) else attention.new_zeros(batch, key.shape[2])
    weights = rows.to(dtype)
    return (attention * weights[..., None]).sum(1) / weights.sum(1, keepdim=True).clamp(min=1)


#: Share of a token's variance below which what is left of it is rounding, and counts as 0.
NO_VARIANCE = 1e-4


#: Multiplier of the order in which tokens are picked that have no variance left: 2^32 over the golden ratio. Indices
#: times it, modulo 2^32, are spread evenly, and so are the indices of the smallest of these numbers.
SPREAD = 2654435769


def dpp_select(features: Tensor, quality: Tensor, k: int, mask: Tensor | None) -> Tensor:
    """Each pick is the candidate of largest variance given the picks: L_jj - L_jS L_SS^-1 L_Sj.

    If none has variance left, it is the candidate first in an order that is spread evenly over the indices.
    """
    similarity, excluded = _similarity(features, mask)
    quality = quality.float()
    kernel = quality[:, :, None] * similarity * quality[:, None]
    prior = kernel.diagonal(dim1=1, dim2=2)  # variances without picks
    variance, columns = prior.clone(), list[Tensor]()
    picks = torch.empty(len(kernel), 0, dtype=torch.int64, device=kernel.device)
    taken = excluded.clone()
    order = torch.arange(features.shape[1], device=kernel.device) * SPREAD % 2**32
    for _ in range(k):
        score = torch.where(variance > NO_VARIANCE * prior, variance, 0).masked_fill(taken, -torch.inf)
        spread = order.masked_fill(taken, 2**32).argmin(-1)
        best = torch.where(score.amax(-1) > 0, score.argmax(-1), spread)
        picks = torch.cat([picks, best.masked_fill(taken.all(1), -1)[:, None]], 1)
        row = kernel[torch.arange(len(kernel), device=kernel.device), best]
        for column in columns:  # of the Cholesky factor of L_SS, continued to all tokens
            row = row - column * column.gather(1, best[:, None])
        explained = score.gather(1, best[:, None])  # a pick without variance explains none
        columns.append(torch.where(explained > 0, row / explained.clamp(min=1e-30).sqrt(), 0))
        variance = variance - columns[-1] ** 2
        taken = taken.scatter(1, best[:, None], True)
    return picks


def coverage_select(similarity: Tensor, k: int, quality: Tensor | None, mask: Tensor | None) -> Tensor:
    """Each pick is the candidate that adds most to the coverage of all targets."""
    dtype = torch.promote_types(similarity.dtype, torch.float32)
    similarity = similarity.to(dtype)
    batch, targets, n = similarity.shape
    taken = torch.zeros(batch, n, dtype=torch.bool, device=similarity.device) if mask is None else ~mask
    covered = similarity.new_zeros(batch, targets, 1)
    picks = torch.empty(batch, 0, dtype=torch.int64, device=similarity.device)
    for _ in range(k):
        gain = (similarity - covered).clamp(min=0).sum(1)
        gain = gain if quality is None else gain * quality.to(dtype)
        best = gain.masked_fill(taken, -torch.inf).argmax(-1, keepdim=True)
        picks = torch.cat([picks, best.masked_fill(taken.all(1, keepdim=True), -1)], 1)
        covered = torch.maximum(covered, similarity.gather(2, best[:, None].expand(-1, targets, -1)))
        taken = taken.scatter(1, best, True)
    return picks


def token_coverage_select(
    features: Tensor,
    k: int,
    quality: Tensor | None,
    weight: Tensor | None,
    cover: TokenCover,
    others: Tensor | None,
) -> Tensor:
    """`coverage_select` with this similarity of tokens to tokens, and the other targets."""
    return coverage_select(token_coverage(features, weight, cover, others), k, quality, None)


def token_coverage(features: Tensor, weight: Tensor | None, cover: TokenCover, others: Tensor | None) -> Tensor:
    """(B, N + W, N) float32, how well each token covers each target."""
    shift, temperature = cover
    similarity = (1 - shift) * _similarity(features, None)[0] + shift
    if temperature is not None:
        similarity = (similarity / temperature).softmax(-1)
    if weight is not None:
        similarity = similarity * weight.float()[..., None]
    return similarity if others is None else torch.cat([similarity, others.float()], 1)


def _similarity(features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """(B, N, N) cosine similarities, and (B, N) bool, True for tokens that are no candidates."""
    unit = F.normalize(features.float(), dim=-1)
    excluded = torch.zeros(unit.shape[:2], dtype=torch.bool, device=unit.device) if mask is None else ~mask
    similarity = unit @ unit.mT
    return (
        similarity + similarity.mT
    ) / 2, excluded  # exactly symmetric: two tokens that are each other's nearest are a tie


def _greedy(similarity: Tensor, excluded: Tensor, first: Tensor, k: int, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """(B, k) picks: those of `first` (B, S), then the candidate with the smallest reduced similarity to all picks.

    Args:
        similarity: (B, N, N).
        excluded: (B, N) bool, True for tokens that are no candidates.
        first: (B, S) int64, -1 where there is none.
        k: number of picks.
        reduce: (B, N, S) similarities to the picks -> (B, N).
    """
    picks = first[:, :1].masked_fill(excluded.all(1, keepdim=True), -1)
    for i in range(1, k):
        index = picks.clamp(min=0)[:, None].expand(-1, similarity.shape[1], -1)
        score = reduce(similarity.gather(2, index))
        taken = excluded.scatter(1, picks.clamp(min=0), True)
        best = score.masked_fill(taken, torch.inf).argmin(-1).masked_fill(taken.all(1), -1)
        if i < first.shape[1]:
            best = torch.where(first[:, i] >= 0, first[:, i], best)
        picks = torch.cat([picks, best[:, None]], 1)
    return picks
