"""Selection by score and the gather in one launch.

Scores are mapped to integers in the same order. The k-th largest is found by bisection, with 32 counts in registers,
and a cumulative sum gives each kept token its row in the output. Nothing is sorted. Each program repeats this for its
image and copies a few of the kept rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS = 16  # kept tokens that one program copies


@torch.no_grad()
def topk_gather(
    scores: Tensor, features: Tensor, k: int, mask: Tensor | None, positions: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    scores, features = scores.contiguous(), features.contiguous()
    batch, n, d = features.shape
    planes = 0 if positions is None else len(positions)
    indices = torch.empty(batch, k, dtype=torch.int64, device=scores.device)
    gathered = torch.empty(batch, k, d, dtype=features.dtype, device=scores.device)
    moved = torch.empty(planes, batch, k, dtype=torch.int64, device=scores.device)
    block = triton.next_power_of_2(n)
    _topk_gather[(triton.cdiv(k, _ROWS), batch)](
        scores,
        features,
        scores if mask is None else mask.contiguous().view(torch.int8),
        indices if positions is None else positions.contiguous(),
        indices,
        gathered,
        moved,
        batch,
        n,
        k,
        d,
        planes,
        MASKED=mask is not None,
        ROWS=_ROWS,
        BLOCK=block,
        WIDTH=min(1024, triton.next_power_of_2(d)),
        num_warps=max(1, min(16, block // 512)),
    )
    return indices, gathered, moved


@triton.jit
def _topk_gather(
    scores_ptr,
    features_ptr,
    mask_ptr,
    positions_ptr,
    indices_ptr,
    gathered_ptr,
    moved_ptr,
    batch,
    n,
    k,
    d,
    planes,
    MASKED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
):
    image = tl.program_id(1).to(tl.int64)
    token = tl.arange(0, BLOCK)
    inside = token < n
    score = tl.load(scores_ptr + image * n + token, mask=inside, other=0).to(tl.float32)
    score = tl.where(score == 0, 0.0, score)  # -0.0 and 0.0 are equal
    score = tl.where(score != score, float("inf"), score)
    score = tl.maximum(score, -3.4028234663852886e38)
    bits = score.to(tl.int32, bitcast=True)
    key = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)
    candidate = inside
    if MASKED:
        candidate = inside & (tl.load(mask_ptr + image * n + token, mask=inside, other=0) != 0)
    key = tl.where(candidate, key, -(1 << 40))
    n_kept = tl.minimum(tl.sum(candidate.to(tl.int32), 0), k)
    low = tl.full((), -(1 << 31), tl.int64)
    high = tl.full((), (1 << 31) - 1, tl.int64)
    for _ in range(32):
        middle = low + (high - low + 1) // 2
        enough = tl.sum((key >= middle).to(tl.int32), 0) >= n_kept
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    above = key > low
    tie = key == low
    missing = n_kept - tl.sum(above.to(tl.int32), 0)
    kept = above | (tie & (tl.cumsum(tie.to(tl.int32), 0) <= missing))
    order = tl.where(kept, tl.cumsum(kept.to(tl.int32), 0) - 1, -1)
    for i in range(ROWS):
        row = tl.program_id(0) * ROWS + i
        if row < k:
            is_kept = row < n_kept
            index = tl.sum(tl.where(order == row, token, 0), 0).to(tl.int64)
            out = image * k + row
            tl.store(indices_ptr + out, tl.where(is_kept, index, -1))
            for plane in range(planes):
                start = (plane * batch + image).to(tl.int64)
                position = tl.load(positions_ptr + start * n + index)
                tl.store(moved_ptr + start * k + row, tl.where(is_kept, position, 0))
            for begin in range(0, d, WIDTH):
                column = begin + tl.arange(0, WIDTH)
                values = tl.load(features_ptr + (image * n + index) * d + column, mask=column < d, other=0)
                tl.store(gathered_ptr + out * d + column, tl.where(is_kept, values, 0), mask=column < d)
