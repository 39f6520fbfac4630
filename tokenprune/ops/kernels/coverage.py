"""Greedy coverage on the device: launches for the gains of all tokens and for picks, in turns.

Gains never grow, so for a pick only those are computed again that could be the largest, one after another by the one
program that picks. That is much work after the first picks, each of which covers a large part: of the 20,362 gains that
it takes to pick 288 of 2,880 random tokens, two thirds belong to the first 36 picks. So the gains of all tokens are
computed again from time to time, by as many programs as there are tokens: with 24 times of it 2,026 gains are left.
What is picked does not depend on this. Both kernels have equally many warps, so that they sum a token's gain in the
same order; otherwise an old gain would not be an upper bound of the new one.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..checks import TokenCover
from ..host import token_coverage_select as token_coverage_in_blocks
from ..reference import token_coverage
from .greedy import WORKSPACE, warps

_FEW = 256  # tokens up to which all picks are one launch: there a launch takes as long as what it saves


@torch.no_grad()
def coverage_select(similarity: Tensor, k: int, quality: Tensor | None, mask: Tensor | None) -> Tensor:
    scores = similarity.float().mT.contiguous()  # (B, N, R): the similarities of a token are contiguous
    batch, n, targets = scores.shape
    gains = torch.zeros(batch, n, dtype=torch.float32, device=scores.device)
    if mask is not None:
        gains.masked_fill_(~mask, -torch.inf)
    covered = torch.zeros(batch, targets, dtype=torch.float32, device=scores.device)
    factor = gains if quality is None else quality.float().contiguous()
    picks = torch.empty(batch, k, dtype=torch.int64, device=scores.device)
    across, along = triton.next_power_of_2(max(1, targets)), triton.next_power_of_2(n)
    state: tuple[Any, ...] = (scores, factor, covered, gains)
    shape: dict[str, Any] = dict(WEIGHTED=quality is not None, BLOCK=across)
    shape["num_warps"] = max(1, warps(max(across, along)) // 2)  # the fastest on an H200
    for start, end in itertools.pairwise(launches(n, k)):
        _gains[(n, batch)](*state, n, targets, **shape)
        _cover[(batch,)](*state, picks, n, targets, k, start, end, TOKENS=along, **shape)
    return picks


def launches(n: int, k: int) -> list[int]:
    """Picks before which all gains are computed, and `k` at the end.

    The more is covered, the less a pick changes: the number of picks in a launch grows by a quarter of those made.
    """
    starts = [0]
    while n > _FEW and (start := starts[-1] + max(1, starts[-1] // 4)) < k:
        starts.append(start)
    return [*starts, k]


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
def _gains(scores_ptr, factor_ptr, covered_ptr, gains_ptr, n, targets, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr):
    """The gain of each token; that of a token that cannot be picked, -inf, stays."""
    token, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    gains_ptr += image * n + token
    if tl.load(gains_ptr) == -float("inf"):
        return
    target = tl.arange(0, BLOCK)
    covered = tl.load(covered_ptr + image * targets + target, mask=target < targets, other=0)
    gain = _gain(scores_ptr + image * n * targets, covered, token, targets, BLOCK)
    if WEIGHTED:
        gain *= tl.load(factor_ptr + image * n + token)
    tl.store(gains_ptr, gain)


@triton.jit(do_not_specialize=["start", "end"])
def _cover(
    scores_ptr,
    factor_ptr,
    covered_ptr,
    gains_ptr,
    picks_ptr,
    n,
    targets,
    k,
    start,
    end,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Picks `start` to `end` of one image."""
    image = tl.program_id(0).to(tl.int64)
    scores_ptr += image * n * targets
    factor_ptr += image * n
    picks_ptr += image * k
    token, target = tl.arange(0, TOKENS), tl.arange(0, BLOCK)
    gains_ptr += image * n + token
    covered_ptr += image * targets + target
    bound = tl.load(gains_ptr, mask=token < n, other=-float("inf"))
    covered = tl.load(covered_ptr, mask=target < targets, other=0)
    for step in range(start, end):
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
    tl.store(gains_ptr, bound, mask=token < n)
    tl.store(covered_ptr, covered, mask=target < targets)
