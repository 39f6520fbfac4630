"""Greedy DPP on the device: similarities as in the other greedy ops, then all picks in one launch.

One program for each image keeps the variances in registers. Rows of the Cholesky factor go to a workspace that fits
the L2 cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference import NO_VARIANCE, SPREAD
from . import streamed
from .greedy import WORKSPACE, cosines, images_at_once, row_stride, warps


@torch.no_grad()
def dpp_select(features: Tensor, quality: Tensor, k: int, mask: Tensor | None) -> Tensor:
    features, quality = features.contiguous(), quality.float().contiguous()
    batch, n, _ = features.shape
    stride = row_stride(n)
    if 4 * n * stride > WORKSPACE:
        return streamed.dpp_select(features, quality, k, mask)
    images = images_at_once(n, stride)
    picks = torch.empty(batch, k, dtype=torch.int64, device=features.device)
    mask = None if mask is None else mask.contiguous()
    block = triton.next_power_of_2(n)
    for start in range(0, batch, images):
        some = slice(start, start + images)
        similarity, _, candidates = cosines(features[some], None if mask is None else mask[some], stride, seek=False)
        factor = torch.empty(len(similarity), k, n, dtype=torch.float32, device=features.device)
        _volume[(len(similarity),)](
            similarity,
            quality[some],
            candidates,
            factor,
            picks[some],
            n,
            k,
            stride,
            NO_VARIANCE,
            SPREAD=SPREAD,
            MASKED=mask is not None,
            BLOCK=block,
            ROWS=1 if block <= 1024 else 4,  # with the number of warps, the fastest on an H200
            num_warps=min(8, warps(block)) if block <= 4096 else 16,
        )
    return picks


@triton.jit
def _volume(
    similarity_ptr,
    quality_ptr,
    mask_ptr,
    factor_ptr,
    picks_ptr,
    n,
    k,
    stride,
    least,
    SPREAD: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """All picks of one image. ROWS of the factor are loaded at a time, so that few waits follow one another."""
    image = tl.program_id(0).to(tl.int64)
    similarity_ptr += image * n * stride
    factor_ptr += image * k * n
    quality_ptr += image * n
    picks_ptr += image * k
    token = tl.arange(0, BLOCK)
    inside = token < n
    is_open = inside
    if MASKED:
        is_open = is_open & (tl.load(mask_ptr + image * n + token, mask=inside, other=0) != 0)
    quality = tl.load(quality_ptr + token, mask=inside, other=0)
    prior = tl.load(similarity_ptr + token.to(tl.int64) * stride + token, mask=inside, other=0) * quality * quality
    variance = prior
    for step in range(0, k):
        score = tl.where(is_open, tl.where(variance > least * prior, variance, 0.0), -float("inf"))
        most, index = tl.max(score, 0, return_indices=True, return_indices_tie_break_left=True)
        if most == 0.0:  # no token has variance left
            order = (token.to(tl.int64) * SPREAD) & 0xFFFFFFFF
            _, index = tl.min(tl.where(is_open, order, 1 << 32), 0, return_indices=True)
        best = index.to(tl.int64)
        tl.store(picks_ptr + step, tl.where(most == -float("inf"), -1, best))
        row = tl.load(similarity_ptr + best * stride + token, mask=inside, other=0)
        row = row * quality * tl.load(quality_ptr + best)
        shared = tl.zeros((ROWS, BLOCK), tl.float32)
        for start in range(0, step, ROWS):
            before = start + tl.arange(0, ROWS)
            earlier = factor_ptr + before * n
            inner = (before < step)[:, None] & inside[None, :]
            columns = tl.load(earlier[:, None] + token[None, :], mask=inner, other=0)
            shared += columns * tl.load(earlier + best, mask=before < step, other=0)[:, None]
        row -= tl.sum(shared, 0)
        row = tl.where(most > 0, row / tl.sqrt(tl.maximum(most, 1e-30)), 0.0)
        tl.store(factor_ptr + step * n + token, row, mask=inside)
        tl.debug_barrier()  # its other threads read it at the next step
        variance -= row * row
        is_open = is_open & (token != best)
