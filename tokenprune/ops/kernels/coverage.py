"""Greedy coverage on the device: one launch for the first gains of all tokens, one for all picks.

Gains never grow, so for a pick only those are computed again that could be the largest. Both kernels sum a token's
gain in the same order; otherwise an old gain would not be an upper bound of the new one.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..checks import TokenCover
from ..host import token_coverage_select as token_coverage_in_blocks
from ..reference import token_coverage
from .greedy import WORKSPACE, warps


@torch.no_grad()
def coverage_select(similarity: Tensor, k: int, quality: Tensor | None, mask: Tensor | None) -> Tensor:
    scores = similarity.float().mT.contiguous()  # (B, N, R): the similarities of a token are contiguous
    batch, n, targets = scores.shape
    gains = torch.empty(batch, n, dtype=torch.float32, device=scores.device)
    factor = gains if quality is None else quality.float().contiguous()
    candidates = gains if mask is None else mask.contiguous().view(torch.int8)
    picks = torch.empty(batch, k, dtype=torch.int64, device=scores.device)
    across, along = triton.next_power_of_2(max(1, targets)), triton.next_power_of_2(n)
    weighted = quality is not None
    _gains[(n, batch)](scores, factor, gains, n, targets, WEIGHTED=weighted, BLOCK=across, num_warps=warps(across))
    _cover[(batch,)](
        scores,
        factor,
        candidates,
        gains,
        picks,
        n,
        targets,
        k,
        WEIGHTED=weighted,
        MASKED=mask is not None,
        BLOCK=across,
        TOKENS=along,
        num_warps=max(1, warps(max(across, along)) // 2),  # the fastest on an H200
    )
    return picks


def token_coverage_select(
    features: Tensor,
    k: int,
    quality: Tensor | None,
    weight: Tensor | None,
    cover: TokenCover,
    others: Tensor | None,
) -> Tensor:
    n = features.shape[1]
    if 4 * n * (n + (0 if others is None else others.shape[1])) > WORKSPACE:
        return token_coverage_in_blocks(features, k, quality, weight, cover, others)
    picks = []
    for i in range(len(features)):  # one matrix at a time
        some = slice(i, i + 1)
        matrix = token_coverage(
            features[some],
            None if weight is None else weight[some],
            cover,
            None if others is None else others[some],
        )
        picks.append(coverage_select(matrix, k, None if quality is None else quality[some], None))
    return torch.cat(picks)


@triton.jit
def _gain(scores_ptr, covered, token, targets, BLOCK: tl.constexpr):
    """What a token adds to (BLOCK,) coverage of the targets."""
    target = tl.arange(0, BLOCK)
    scores = tl.load(scores_ptr + token.to(tl.int64) * targets + target, mask=target < targets, other=0)
    return tl.sum(tl.maximum(scores - covered, 0.0), 0)


@triton.jit
def _gains(scores_ptr, factor_ptr, gains_ptr, n, targets, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr):
    """The gain of each token before any pick."""
    token, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    gain = _gain(scores_ptr + image * n * targets, tl.zeros((BLOCK,), tl.float32), token, targets, BLOCK)
    if WEIGHTED:
        gain *= tl.load(factor_ptr + image * n + token)
    tl.store(gains_ptr + image * n + token, gain)


@triton.jit
def _cover(
    scores_ptr,
    factor_ptr,
    mask_ptr,
    gains_ptr,
    picks_ptr,
    n,
    targets,
    k,
    WEIGHTED: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """All picks of one image."""
    image = tl.program_id(0).to(tl.int64)
    scores_ptr += image * n * targets
    factor_ptr += image * n
    picks_ptr += image * k
    token, target = tl.arange(0, TOKENS), tl.arange(0, BLOCK)
    is_open = token < n
    bound = tl.load(gains_ptr + image * n + token, mask=is_open, other=0)
    if MASKED:
        is_open = is_open & (tl.load(mask_ptr + image * n + token, mask=is_open, other=0) != 0)
    bound = tl.where(is_open, bound, -float("inf"))
    covered = tl.zeros((BLOCK,), tl.float32)
    for step in range(0, k):
        most, best = tl.max(bound, 0, return_indices=True, return_indices_tie_break_left=True)
        settled = most == -float("inf")
        tried = 0
        while not settled:
            gain = _gain(scores_ptr, covered, best, targets, BLOCK)
            if WEIGHTED:
                gain *= tl.load(factor_ptr + best)
            bound = tl.where(token == best, gain, bound)
            most, again = tl.max(bound, 0, return_indices=True, return_indices_tie_break_left=True)
            settled = again == best
            best = again
            tried += 1
            settled = settled | (tried > n)  # a NaN never settles
        tl.store(picks_ptr + step, tl.where(most == -float("inf"), -1, best.to(tl.int64)))
        row = tl.load(scores_ptr + best.to(tl.int64) * targets + target, mask=target < targets, other=0)
        covered = tl.maximum(covered, row)
        bound = tl.where(token == best, -float("inf"), bound)
