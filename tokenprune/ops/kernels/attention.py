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
    depth = max(16, min(tile * 2, triton.next_power_of_2(width)))  # columns of a head at a time
    shared: dict[str, Any] = dict(
        GROUP=heads // key.shape[1],
        MASKED=mask is not None,
        LISTED=listed,
        WEIGHTED=weighted,
        WIDEN=interpreted(),
        TILE=tile,
        DEPTH=depth,
        WHOLE=width <= depth,
        num_warps=4,
    )
    sizes = (heads, length, asked, n, width, image_stride, query_stride, scaling)
    _denominators[(triton.cdiv(asked, tile), batch * heads)](query, key, which, seen, top, inverse, *sizes, **shared)
    _received[(triton.cdiv(n, tile), batch * heads)](query, key, which, seen, top, inverse, received, *sizes, **shared)
    count = rows.sum(1, keepdim=True).clamp(min=1) if rows is not None and weighted else asked
    return received.sum(1) / (heads * count)


@triton.jit
def _product(queries, keys, score, start, width, inside, within, WIDEN: tl.constexpr, DEPTH: tl.constexpr):
    """A tile of scores, and what DEPTH columns of queries and keys add to it."""
    real = start + tl.arange(0, DEPTH) < width
    query = tl.load(queries + start, mask=inside[:, None] & real[None, :], other=0)
    key = tl.load(keys + start, mask=within[None, :] & real[:, None], other=0)
    if WIDEN:
        query, key = query.to(tl.float32), key.to(tl.float32)
    return tl.dot(query, key, score, input_precision="ieee")


@triton.jit
def _tile(
    query_ptr,
    key_ptr,
    which_ptr,
    mask_ptr,
    head,
    first_query,
    first_key,
    length,
    asked,
    n,
    width,
    query_stride,
    scaling,
    GROUP: tl.constexpr,
    MASKED: tl.constexpr,
    LISTED: tl.constexpr,
    WIDEN: tl.constexpr,
    TILE: tl.constexpr,
    DEPTH: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Scores of a tile, -inf where a query may not look; and of its queries their number among the asked ones, where
    in the sequence they stand, and whether they are any."""
    order, place = first_query + tl.arange(0, TILE), first_key + tl.arange(0, TILE)
    inside, within = order < asked, place < n
    row = order
    if LISTED:
        row = tl.load(which_ptr + order, mask=inside, other=0).to(tl.int32)
    column = tl.arange(0, DEPTH)
    queries = query_ptr + (head * length + row.to(tl.int64))[:, None] * width + column[None, :]
    keys = key_ptr + (head // GROUP * n + place.to(tl.int64))[None, :] * width + column[:, None]
    score = tl.zeros((TILE, TILE), tl.float32)
    if WHOLE:  # without a loop of its own, so that the one around it is pipelined
        score = _product(queries, keys, score, 0, width, inside, within, WIDEN, DEPTH)
    else:
        for start in range(0, width, DEPTH):
            score = _product(queries, keys, score, start, width, inside, within, WIDEN, DEPTH)
    look = inside[:, None] & within[None, :]
    if MASKED:
        pointer = mask_ptr + row.to(tl.int64)[:, None] * query_stride + place[None, :]
        look = look & (tl.load(pointer, mask=look, other=0) != 0)
    return tl.where(look, score * scaling, -float("inf")), order, row, inside


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
    DEPTH: tl.constexpr,
    WHOLE: tl.constexpr,
):
    head = tl.program_id(1).to(tl.int64)
    mask_ptr += (head // heads) * image_stride
    mine = tl.program_id(0) * TILE
    top = tl.full((TILE,), -float("inf"), tl.float32)
    total = tl.zeros((TILE,), tl.float32)
    for start in range(0, n, TILE):
        score, _, _, _ = _tile(
            query_ptr, key_ptr, which_ptr, mask_ptr, head, mine, start, length, asked, n, width, query_stride, scaling,
            GROUP, MASKED, LISTED, WIDEN, TILE, DEPTH, WHOLE,
        )  # fmt: skip
        new = tl.maximum(top, tl.max(score, 1))
        base = tl.where(new == -float("inf"), 0.0, new)  # nothing to look at so far
        total = total * tl.exp(top - base) + tl.sum(tl.exp(score - base[:, None]), 1)
        top = new
    order = mine + tl.arange(0, TILE)
    tl.store(top_ptr + head * asked + order, tl.where(top == -float("inf"), 0.0, top), mask=order < asked)
    looked = total > 0
    inverse = tl.where(looked, 1.0 / tl.where(looked, total, 1.0), 0.0)
    tl.store(inverse_ptr + head * asked + order, inverse, mask=order < asked)


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
    DEPTH: tl.constexpr,
    WHOLE: tl.constexpr,
):
    head = tl.program_id(1).to(tl.int64)
    image = head // heads
    mask_ptr += image * image_stride
    mine = tl.program_id(0) * TILE
    total = tl.zeros((TILE,), tl.float32)
    for start in range(0, asked, TILE):
        score, order, row, inside = _tile(
            query_ptr, key_ptr, which_ptr, mask_ptr, head, start, mine, length, asked, n, width, query_stride, scaling,
            GROUP, MASKED, LISTED, WIDEN, TILE, DEPTH, WHOLE,
        )  # fmt: skip
        top = tl.load(top_ptr + head * asked + order, mask=inside, other=0)
        share = tl.load(inverse_ptr + head * asked + order, mask=inside, other=0)
        if WEIGHTED:
            wanted = tl.load(which_ptr + image * length + row, mask=inside, other=0)
            share = share * (wanted != 0)
        total += tl.sum(tl.exp(score - top[:, None]) * share[:, None], 0)
    place = mine + tl.arange(0, TILE)
    tl.store(received_ptr + head * n + place, total, mask=place < n)
