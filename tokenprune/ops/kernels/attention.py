"""Attention received, in two passes of streamed softmax.

The first pass leaves each query's maximum and denominator, the second adds up every key's share over
the queries, head by head. Scores exist as tiles only.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .interpreter import interpreted


@torch.no_grad()
def attention_received(query: Tensor, key: Tensor, rows: Tensor | None, mask: Tensor | None, scaling: float) -> Tensor:
    batch, heads, length, width = query.shape
    n = key.shape[2]
    weighted = rows is not None and rows.dtype == torch.bool
    listed = rows is not None and not weighted
    asked = rows.numel() if rows is not None and listed else length
    like: dict[str, Any] = dict(dtype=torch.float32, device=query.device)
    received = torch.zeros(batch, heads, n, **like)
    if asked == 0:
        return received[:, 0]
    query, key = query.contiguous(), key.contiguous()
    top, inverse = torch.empty(batch, heads, asked, **like), torch.empty(batch, heads, asked, **like)
    which = query if rows is None else rows.contiguous().view(torch.int8) if weighted else rows.to(query.device)
    seen = query if mask is None else mask.contiguous().view(torch.int8)
    image_stride = 0 if mask is None else mask[0].numel()
    query_stride = n if mask is not None and mask.ndim == 3 else 0
    tile = 32 if query.dtype == torch.float32 else 64
    shared: dict[str, Any] = dict(
        GROUP=heads // key.shape[1],
        MASKED=mask is not None,
        LISTED=listed,
        WEIGHTED=weighted,
        WIDEN=interpreted(),
        TILE=tile,
        WIDTH=max(16, triton.next_power_of_2(width)),
        num_warps=4,
    )
    sizes = (heads, length, asked, n, width, image_stride, query_stride, scaling)
    _denominators[(triton.cdiv(asked, tile), batch * heads)](query, key, which, seen, top, inverse, *sizes, **shared)
    _received[(triton.cdiv(n, tile), batch * heads)](query, key, which, seen, top, inverse, received, *sizes, **shared)
    count = rows.sum(1, keepdim=True).clamp(min=1) if rows is not None and weighted else asked
    return received.sum(1) / (heads * count)


@triton.jit
def _load_queries(query_ptr, which_ptr, head, length, asked, width, start, LISTED, TILE: tl.constexpr, WIDTH):
    """A tile of the asked queries, and where in the sequence they stand."""
    place = start + tl.arange(0, TILE)
    inside = place < asked
    row = place
    if LISTED:
        row = tl.load(which_ptr + place, mask=inside, other=0).to(tl.int32)
    column = tl.arange(0, WIDTH)
    pointer = query_ptr + (head * length + row.to(tl.int64))[:, None] * width + column[None, :]
    query = tl.load(pointer, mask=inside[:, None] & (column < width)[None, :], other=0)
    return query, row, place, inside


@triton.jit
def _load_keys(key_ptr, head, n, width, start, TILE: tl.constexpr, WIDTH: tl.constexpr):
    """A tile of keys, (WIDTH, TILE)."""
    place = start + tl.arange(0, TILE)
    column = tl.arange(0, WIDTH)
    pointer = key_ptr + (head * n + place.to(tl.int64))[None, :] * width + column[:, None]
    return tl.load(pointer, mask=(place < n)[None, :] & (column < width)[:, None], other=0), place


@triton.jit
def _tile(query, key, row, place, inside, mask_ptr, n, query_stride, scaling, MASKED: tl.constexpr, WIDEN):
    """Scores of a tile, -inf where a query may not look."""
    if WIDEN:
        query, key = query.to(tl.float32), key.to(tl.float32)
    score = tl.dot(query, key, input_precision="ieee") * scaling
    look = inside[:, None] & (place < n)[None, :]
    if MASKED:
        pointer = mask_ptr + row.to(tl.int64)[:, None] * query_stride + place[None, :]
        look = look & (tl.load(pointer, mask=look, other=0) != 0)
    return tl.where(look, score, -float("inf"))


@triton.jit
def _denominators(
    query_ptr,
    key_ptr,
    which_ptr,
    mask_ptr,
    top_ptr,
    inverse_ptr,
    heads,
    length,
    asked,
    n,
    width,
    image_stride,
    query_stride,
    scaling,
    GROUP: tl.constexpr,
    MASKED: tl.constexpr,
    LISTED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    WIDEN: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    head = tl.program_id(1).to(tl.int64)
    mask_ptr += (head // heads) * image_stride
    query, row, order, inside = _load_queries(
        query_ptr, which_ptr, head, length, asked, width, tl.program_id(0) * TILE, LISTED, TILE, WIDTH
    )
    top = tl.full((TILE,), -float("inf"), tl.float32)
    total = tl.zeros((TILE,), tl.float32)
    for start in range(0, n, TILE):
        key, place = _load_keys(key_ptr, head // GROUP, n, width, start, TILE, WIDTH)
        score = _tile(query, key, row, place, inside, mask_ptr, n, query_stride, scaling, MASKED, WIDEN)
        new = tl.maximum(top, tl.max(score, 1))
        base = tl.where(new == -float("inf"), 0.0, new)  # nothing to look at so far
        total = total * tl.exp(top - base) + tl.sum(tl.exp(score - base[:, None]), 1)
        top = new
    tl.store(top_ptr + head * asked + order, tl.where(top == -float("inf"), 0.0, top), mask=inside)
    looked = total > 0
    tl.store(inverse_ptr + head * asked + order, tl.where(looked, 1.0 / tl.where(looked, total, 1.0), 0.0), mask=inside)


@triton.jit
def _received(
    query_ptr,
    key_ptr,
    which_ptr,
    mask_ptr,
    top_ptr,
    inverse_ptr,
    received_ptr,
    heads,
    length,
    asked,
    n,
    width,
    image_stride,
    query_stride,
    scaling,
    GROUP: tl.constexpr,
    MASKED: tl.constexpr,
    LISTED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    WIDEN: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    head = tl.program_id(1).to(tl.int64)
    image = head // heads
    mask_ptr += image * image_stride
    key, place = _load_keys(key_ptr, head // GROUP, n, width, tl.program_id(0) * TILE, TILE, WIDTH)
    total = tl.zeros((TILE,), tl.float32)
    for start in range(0, asked, TILE):
        query, row, order, inside = _load_queries(
            query_ptr, which_ptr, head, length, asked, width, start, LISTED, TILE, WIDTH
        )
        score = _tile(query, key, row, place, inside, mask_ptr, n, query_stride, scaling, MASKED, WIDEN)
        top = tl.load(top_ptr + head * asked + order, mask=inside, other=0)
        share = tl.load(inverse_ptr + head * asked + order, mask=inside, other=0)
        if WEIGHTED:
            wanted = tl.load(which_ptr + image * length + row, mask=inside, other=0)
            share = share * (wanted != 0)
        total += tl.sum(tl.exp(score - top[:, None]) * share[:, None], 0)
    tl.store(received_ptr + head * n + place, total, mask=place < n)
