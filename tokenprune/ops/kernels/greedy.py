"""Greedy diversity on the device: norms, similarities, and the whole loop, one launch each.

Similarities are products of the raw features on tensor cores (float32 sums), scaled by float32 norms
afterwards: as exact as products of float32 unit vectors. The loop is one program per image: its scores
stay in registers, a step is one row of similarities out of the L2 cache and one reduction.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .interpreter import interpreted

_WORKSPACE = 1 << 31  # bytes of similarities at a time


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
    images = images_at_once(n, stride)
    picks = torch.empty(batch, k, dtype=torch.int64, device=features.device)
    mask = None if mask is None else mask.contiguous()
    first = None if first is None else first.contiguous()
    for start in range(0, batch, images):
        some = slice(start, start + images)
        _launch(
            features[some],
            k,
            None if first is None else first[some],
            None if mask is None else mask[some],
            picks[some],
            stride,
            summed,
            length,
        )
    return picks


def _launch(
    features: Tensor,
    k: int,
    first: Tensor | None,
    mask: Tensor | None,
    picks: Tensor,
    stride: int,
    summed: bool,
    length: float,
) -> None:
    batch, n, _ = features.shape
    seek = first is None
    similarity, likeness, candidates = cosines(features, mask, stride, seek, length)
    block = triton.next_power_of_2(n)
    _greedy[(batch,)](
        similarity,
        likeness,
        candidates,
        picks if first is None else first,  # a pointer that is not read still has to be one
        picks,
        n,
        k,
        0 if first is None else first.shape[1],
        stride,
        MASKED=mask is not None,
        SEEK=seek,
        SUM=summed,
        BLOCK=block,
        num_warps=warps(block),
    )


def warps(block: int) -> int:
    """Of a program that holds a value per token; 1024 threads at most, and an AMD GPU's warps have 64."""
    return max(1, min(32 if torch.version.hip is None else 16, block // 512))


def row_stride(n: int) -> int:
    """Rows of similarities start where vector loads want them."""
    return triton.cdiv(n, 16) * 16


def images_at_once(n: int, stride: int) -> int:
    """How many images' similarities fit into the workspace."""
    return max(1, _WORKSPACE // (4 * n * stride))


def cosines(
    features: Tensor, mask: Tensor | None, stride: int, seek: bool, length: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Similarities (B, N, stride) of (B, N, D); if `seek`, the largest of each token's; and the mask to hand on."""
    batch, n, d = features.shape
    like: dict[str, Any] = dict(dtype=torch.float32, device=features.device)
    inverse, likeness = torch.empty(batch, n, **like), torch.empty(batch, n, **like)
    similarity = torch.empty(batch, n, stride, **like)
    candidates = inverse if mask is None else mask.view(torch.int8)
    _norms[(triton.cdiv(batch * n, 8),)](features, inverse, likeness, batch * n, d, ROWS=8, BLOCK=512)
    mean = inverse
    if length:  # of the lengths of candidates, float32 (B,)
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
        likeness,
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
        num_stages=3,
    )
    return similarity, likeness, candidates


@triton.jit
def _norms(x_ptr, inverse_ptr, likeness_ptr, tokens, d, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """1 / |x| of a few tokens; and nobody is like them yet."""
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real = token < tokens
    squares = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, d, BLOCK):
        place = start + tl.arange(0, BLOCK)
        pointer = x_ptr + token[:, None] * d + place[None, :]
        x = tl.load(pointer, mask=real[:, None] & (place < d)[None, :], other=0).to(tl.float32)
        squares += x * x
    norm = tl.sqrt_rn(tl.sum(squares, 1))
    tl.store(inverse_ptr + token, tl.div_rn(1.0, tl.maximum(norm, 1e-12)), mask=real)
    tl.store(likeness_ptr + token, tl.full((ROWS,), -float("inf"), tl.float32), mask=real)


@triton.jit
def _similarities(
    x_ptr,
    inverse_ptr,
    mask_ptr,
    similarity_ptr,
    likeness_ptr,
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
    """One tile of cosines and its mirror image; LENGTH: that count lengths; SEEK: also each token's largest.

    All factors are symmetric: tokens that are each other's nearest are a tie.
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
    if i == j:
        total = tl.maximum(total, tl.trans(total))  # symmetric but for rounding
    row_scale = tl.load(inverse_ptr + image * n + row, mask=row_in, other=0)
    column_scale = tl.load(inverse_ptr + image * n + column, mask=column_in, other=0)
    total = total * (row_scale[:, None] * column_scale[None, :])
    if LENGTH:
        mean = tl.load(mean_ptr + image)
        row_own = tl.where(row_scale > 0, 1 / tl.maximum(row_scale, 1e-30) / tl.maximum(mean, 1e-12), 0)
        column_own = tl.where(column_scale > 0, 1 / tl.maximum(column_scale, 1e-30) / tl.maximum(mean, 1e-12), 0)
        total *= (1 - length) + length * (row_own[:, None] * column_own[None, :])
        total -= length / 2 * ((row_own * row_own)[:, None] + (column_own * column_own)[None, :])
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
        others = row_in[:, None] & column_in[None, :] & (row[:, None] != column[None, :])
        total = tl.where(others, total, -float("inf"))
        tl.atomic_max(likeness_ptr + image * n + row, tl.max(total, 1), mask=row_in, sem="relaxed")
        if i != j:
            tl.atomic_max(likeness_ptr + image * n + column, tl.max(total, 0), mask=column_in, sem="relaxed")


@triton.jit
def _greedy(
    similarity_ptr,
    likeness_ptr,
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
    place = tl.arange(0, BLOCK)
    candidate = place < n
    if MASKED:
        candidate = candidate & (tl.load(mask_ptr + image * n + place, mask=candidate, other=0) != 0)
    anybody = tl.max(candidate.to(tl.int32), 0) > 0
    if SEEK:
        likeness = tl.load(likeness_ptr + image * n + place, mask=candidate, other=float("inf"))
        last = tl.argmin(likeness, 0).to(tl.int64)
    else:
        last = tl.load(first_ptr + image * given).to(tl.int64)
    tl.store(picks_ptr, tl.where(anybody, last, -1))
    start = 0.0 if SUM else -float("inf")
    score = tl.where(candidate, start, float("inf"))
    for step in range(1, k):
        row = tl.load(similarity_ptr + last * stride + place, mask=place < n, other=0)
        if SUM:
            score += row
        else:
            score = tl.maximum(score, row)
        score = tl.where(place == last, float("inf"), score)  # never twice
        least, index = tl.min(score, 0, return_indices=True, return_indices_tie_break_left=True)
        last = index.to(tl.int64)
        if not SEEK:
            told = tl.load(first_ptr + image * given + step, mask=step < given, other=-1).to(tl.int64)
            last = tl.where(told >= 0, told, last)
        tl.store(picks_ptr + step, tl.where(least == float("inf"), -1, last))
