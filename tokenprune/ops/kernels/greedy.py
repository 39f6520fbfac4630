"""Greedy diversity on the device: norms, similarities and the whole loop, one launch each.

Similarities are products of the raw features on tensor cores (float32 sums), scaled by float32 norms afterwards. This
is as exact as products of float32 unit vectors. The loop is one program for each image. Its scores stay in registers;
a step reads one row of similarities from the L2 cache and does one reduction.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import streamed
from .interpreter import interpreted

WORKSPACE = 1 << 31  # bytes of similarities at a time; inputs that need more have no matrix of them


def max_min_select(features: Tensor, k: int, first: Tensor | None, mask: Tensor | None, length: float) -> Tensor:
    return _select(features, k, first, mask, summed=False, length=length)


def max_sum_select(features: Tensor, k: int, first: Tensor, mask: Tensor | None) -> Tensor:
    return _select(features, k, first, mask, summed=True)


@torch.no_grad()
def _select(
    features: Tensor, k: int, first: Tensor | None, mask: Tensor | None, summed: bool, length: float = 0.0
) -> Tensor:
    features = features.contiguous()
    batch, n, _ = features.shape
    stride = row_stride(n)
    if 4 * n * stride > WORKSPACE:
        return streamed.greedy(features, k, first, mask, summed, length)
    images = images_at_once(n, stride)
    picks = torch.empty(batch, k, dtype=torch.int64, device=features.device)
    mask = None if mask is None else mask.contiguous()
    first = None if first is None else first.contiguous()
    block = triton.next_power_of_2(n)
    for start in range(0, batch, images):
        some = slice(start, start + images)
        similarity, nearest, candidates = cosines(
            features[some], None if mask is None else mask[some], stride, first is None, length
        )
        _greedy[(len(similarity),)](
            similarity,
            nearest,
            candidates,
            picks[some] if first is None else first[some],  # a pointer that is not read still has to be one
            picks[some],
            n,
            k,
            0 if first is None else first.shape[1],
            stride,
            MASKED=mask is not None,
            SEEK=first is None,
            SUM=summed,
            BLOCK=block,
            num_warps=warps(block),
        )
    return picks


def warps(block: int) -> int:
    """Warps of a program with `block` values: four values to a thread, which was fastest on an H200.

    1024 threads at most, with 32 threads in a warp (64 on AMD GPUs).
    """
    lanes = 32 if torch.version.hip is None else 64
    return max(1, min(1024, block // 4) // lanes)


def row_stride(n: int) -> int:
    """Elements from one row of similarities to the next: a multiple of 16, for aligned vector loads."""
    stride: int = triton.cdiv(n, 16) * 16
    return stride


def images_at_once(n: int, stride: int) -> int:
    """Number of images whose similarities fit into the workspace."""
    return max(1, WORKSPACE // (4 * n * stride))


def cosines(
    features: Tensor, mask: Tensor | None, stride: int, seek: bool, length: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Similarities of tokens.

    Args:
        features: (B, N, D), contiguous.
        mask: (B, N) bool, True for candidates.
        stride: of a row of similarities, as `row_stride` gives it.
        seek: whether each token's largest similarity to another candidate is computed, too.
        length: weight of lengths, as in `max_min_select`.

    Returns:
        (B, N, stride) float32 similarities, (B, N) largest ones, and a pointer to the mask for other kernels.
    """
    batch, n, d = features.shape
    like: dict[str, Any] = dict(dtype=torch.float32, device=features.device)
    inverse, nearest = torch.empty(batch, n, **like), torch.empty(batch, n, **like)
    similarity = torch.empty(batch, n, stride, **like)
    candidates = inverse if mask is None else mask.view(torch.int8)
    _norms[(triton.cdiv(batch * n, 8),)](features, inverse, nearest, batch * n, d, ROWS=8, BLOCK=512)
    mean = inverse
    if length:  # (B,) float32, mean length of the candidates
        lengths = 1 / inverse if mask is None else torch.where(mask, 1 / inverse, 0)
        mean = lengths.sum(1) / (n if mask is None else mask.sum(1).clamp(min=1))
    wide = features.dtype == torch.float32
    tile = 64 if wide or n <= 1024 else 128
    tiles = triton.cdiv(n, tile)
    _similarities[(tiles, tiles, batch)](
        features,
        inverse,
        candidates,
        similarity,
        nearest,
        mean,
        n,
        d,
        stride,
        length,
        MASKED=mask is not None,
        SEEK=seek,
        LENGTH=length > 0,
        WIDEN=interpreted(),
        TILE=tile,
        DEPTH=32 if wide else 64,
        num_warps=4 if tile == 64 else 8,
        num_stages=4 if tile == 64 and not wide and torch.version.hip is None else 3,
    )
    return similarity, nearest, candidates


@triton.jit
def _norms(x_ptr, inverse_ptr, nearest_ptr, tokens, d, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """1 / |x| of a few tokens, and -inf for their largest similarity so far."""
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    is_token = token < tokens
    squares = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, d, BLOCK):
        column = start + tl.arange(0, BLOCK)
        pointer = x_ptr + token[:, None] * d + column[None, :]
        x = tl.load(pointer, mask=is_token[:, None] & (column < d)[None, :], other=0).to(tl.float32)
        squares += x * x
    norm = tl.sqrt_rn(tl.sum(squares, 1))
    tl.store(inverse_ptr + token, tl.div_rn(1.0, tl.maximum(norm, 1e-12)), mask=is_token)
    tl.store(nearest_ptr + token, tl.full((ROWS,), -float("inf"), tl.float32), mask=is_token)


@triton.jit
def _similarities(
    x_ptr,
    inverse_ptr,
    mask_ptr,
    similarity_ptr,
    nearest_ptr,
    mean_ptr,
    n,
    d,
    stride,
    length,
    MASKED: tl.constexpr,
    SEEK: tl.constexpr,
    LENGTH: tl.constexpr,
    WIDEN: tl.constexpr,
    TILE: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """One tile of cosine similarities and its mirror image. LENGTH: with lengths. SEEK: also each token's largest.

    It is symmetric to the bit, so two tokens that are each other's nearest are a tie.
    """
    i, j = tl.program_id(0), tl.program_id(1)
    if i > j:
        return
    image = tl.program_id(2).to(tl.int64)
    x_ptr += image * n * d
    row, column = i * TILE + tl.arange(0, TILE), j * TILE + tl.arange(0, TILE)
    row_in, column_in = row < n, column < n
    depth = tl.arange(0, DEPTH)
    left = x_ptr + row.to(tl.int64)[:, None] * d + depth[None, :]
    right = x_ptr + column.to(tl.int64)[None, :] * d + depth[:, None]
    total = tl.zeros((TILE, TILE), tl.float32)
    for start in range(0, d, DEPTH):
        inside = start + depth < d
        a = tl.load(left + start, mask=row_in[:, None] & inside[None, :], other=0)
        b = tl.load(right + start, mask=column_in[None, :] & inside[:, None], other=0)
        if WIDEN:
            a, b = a.to(tl.float32), b.to(tl.float32)
        total = tl.dot(a, b, total, input_precision="ieee")
    row_scale = tl.load(inverse_ptr + image * n + row, mask=row_in, other=0)
    column_scale = tl.load(inverse_ptr + image * n + column, mask=column_in, other=0)
    total = total * (row_scale[:, None] * column_scale[None, :])
    if LENGTH:
        mean = tl.load(mean_ptr + image)
        row_norm = tl.where(row_scale > 0, 1 / tl.maximum(row_scale, 1e-30) / tl.maximum(mean, 1e-12), 0)
        column_norm = tl.where(column_scale > 0, 1 / tl.maximum(column_scale, 1e-30) / tl.maximum(mean, 1e-12), 0)
        total *= (1 - length) + length * (row_norm[:, None] * column_norm[None, :])
        total -= length / 2 * ((row_norm * row_norm)[:, None] + (column_norm * column_norm)[None, :])
    if i == j:
        total = tl.maximum(total, tl.trans(total))  # symmetric but for rounding, of products and of fused sums
    similarity_ptr += image * n * stride
    both = row_in[:, None] & column_in[None, :]
    tl.store(similarity_ptr + row.to(tl.int64)[:, None] * stride + column[None, :], total, mask=both)
    if i != j:
        mirror = column.to(tl.int64)[:, None] * stride + row[None, :]
        tl.store(similarity_ptr + mirror, tl.trans(total), mask=column_in[:, None] & row_in[None, :])
    if SEEK:
        if MASKED:
            row_in = row_in & (tl.load(mask_ptr + image * n + row, mask=row_in, other=0) != 0)
            column_in = column_in & (tl.load(mask_ptr + image * n + column, mask=column_in, other=0) != 0)
        is_other = row_in[:, None] & column_in[None, :] & (row[:, None] != column[None, :])
        total = tl.where(is_other, total, -float("inf"))
        tl.atomic_max(nearest_ptr + image * n + row, tl.max(total, 1), mask=row_in, sem="relaxed")
        if i != j:
            tl.atomic_max(nearest_ptr + image * n + column, tl.max(total, 0), mask=column_in, sem="relaxed")


@triton.jit
def _greedy(
    similarity_ptr,
    nearest_ptr,
    mask_ptr,
    first_ptr,
    picks_ptr,
    n,
    k,
    given,
    stride,
    MASKED: tl.constexpr,
    SEEK: tl.constexpr,
    SUM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All picks of one image; scores of tokens that cannot be picked are infinite."""
    image = tl.program_id(0).to(tl.int64)
    similarity_ptr += image * n * stride
    picks_ptr += image * k
    token = tl.arange(0, BLOCK)
    candidate = token < n
    if MASKED:
        candidate = candidate & (tl.load(mask_ptr + image * n + token, mask=candidate, other=0) != 0)
    has_candidates = tl.max(candidate.to(tl.int32), 0) > 0
    if SEEK:
        nearest = tl.load(nearest_ptr + image * n + token, mask=candidate, other=float("inf"))
        last = tl.argmin(nearest, 0).to(tl.int64)
    else:
        last = tl.load(first_ptr + image * given).to(tl.int64)
    tl.store(picks_ptr, tl.where(has_candidates, last, -1))
    start = 0.0 if SUM else -float("inf")
    score = tl.where(candidate, start, float("inf"))
    for step in range(1, k):
        row = tl.load(similarity_ptr + last * stride + token, mask=token < n, other=0)
        if SUM:
            score += row
        else:
            score = tl.maximum(score, row)
        score = tl.where(token == last, float("inf"), score)  # never picked twice
        least, index = tl.min(score, 0, return_indices=True, return_indices_tie_break_left=True)
        last = index.to(tl.int64)
        if not SEEK:
            forced = tl.load(first_ptr + image * given + step, mask=step < given, other=-1).to(tl.int64)
            last = tl.where(forced >= 0, forced, last)
        tl.store(picks_ptr + step, tl.where(least == float("inf"), -1, last))
