"""Attention received, in two passes of streamed softmax.

The first pass stores the maximum and the denominator of each query's softmax. The second sums each key's attention
over the queries, head by head. Scores exist as tiles only, never as a whole map.
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
    n_queries = rows.numel() if rows is not None and listed else length
    like: dict[str, Any] = dict(dtype=torch.float32, device=query.device)
    received = torch.zeros(batch, heads, n, **like)
    if n_queries == 0:
        return received[:, 0]
    query, key = query.contiguous(), key.contiguous()
    top, inverse = torch.empty(batch, heads, n_queries, **like), torch.empty(batch, heads, n_queries, **like)
    # A pointer that a kernel does not read still has to be one: `query` stands in for it.
    which = query if rows is None else rows.contiguous().view(torch.int8) if weighted else rows.to(query.device)
    visible = query if mask is None else mask.contiguous().view(torch.int8)
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
    sizes = (heads, length, n_queries, n, width, image_stride, query_stride, scaling)
    _denominators[(triton.cdiv(n_queries, tile), batch * heads)](
        query, key, which, visible, top, inverse, *sizes, **shared
    )
    _received[(triton.cdiv(n, tile), batch * heads)](
        query, key, which, visible, top, inverse, received, *sizes, **shared
    )
    count = rows.sum(1, keepdim=True).clamp(min=1) if rows is not None and weighted else n_queries
    return received.sum(1) / (heads * count)


@triton.jit
def _product(queries, keys, score, start, width, inside, within, WIDEN: tl.constexpr, DEPTH: tl.constexpr):
    """A (TILE, TILE) tile of scores plus the product of DEPTH columns of queries and keys."""
    in_head = start + tl.arange(0, DEPTH) < width
    query = tl.load(queries + start, mask=inside[:, None] & in_head[None, :], other=0)
    key = tl.load(keys + start, mask=within[None, :] & in_head[:, None], other=0)
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
    n_queries,
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
    """A (TILE, TILE) tile of scores, -inf where a query may not attend to a key.

    Also, (TILE,) each, its queries' numbers among the given ones, their indices in the sequence, and whether they
    exist.
    """
    order, token = first_query + tl.arange(0, TILE), first_key + tl.arange(0, TILE)
    inside, within = order < n_queries, token < n
    row = order
    if LISTED:
        row = tl.load(which_ptr + order, mask=inside, other=0).to(tl.int32)
    column = tl.arange(0, DEPTH)
    queries = query_ptr + (head * length + row.to(tl.int64))[:, None] * width + column[None, :]
    keys = key_ptr + (head // GROUP * n + token.to(tl.int64))[None, :] * width + column[:, None]
    score = tl.zeros((TILE, TILE), tl.float32)
    if WHOLE:  # no inner loop, so that Triton pipelines the outer one
        score = _product(queries, keys, score, 0, width, inside, within, WIDEN, DEPTH)
    else:
        for start in range(0, width, DEPTH):
            score = _product(queries, keys, score, start, width, inside, within, WIDEN, DEPTH)
    visible = inside[:, None] & within[None, :]
    if MASKED:
        pointer = mask_ptr + row.to(tl.int64)[:, None] * query_stride + token[None, :]
        visible = visible & (tl.load(pointer, mask=visible, other=0) != 0)
    return tl.where(visible, score * scaling, -float("inf")), order, row, inside


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
    n_queries,
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
    first = tl.program_id(0) * TILE
    top = tl.full((TILE,), -float("inf"), tl.float32)
    total = tl.zeros((TILE,), tl.float32)
    for start in range(0, n, TILE):
        score, _, _, _ = _tile(
            query_ptr, key_ptr, which_ptr, mask_ptr, head, first, start, length, n_queries, n, width, query_stride,
            scaling, GROUP, MASKED, LISTED, WIDEN, TILE, DEPTH, WHOLE,
        )  # fmt: skip
        new = tl.maximum(top, tl.max(score, 1))
        base = tl.where(new == -float("inf"), 0.0, new)  # no visible key so far
        total = total * tl.exp(top - base) + tl.sum(tl.exp(score - base[:, None]), 1)
        top = new
    order = first + tl.arange(0, TILE)
    tl.store(top_ptr + head * n_queries + order, tl.where(top == -float("inf"), 0.0, top), mask=order < n_queries)
    attends = total > 0
    inverse = tl.where(attends, 1.0 / tl.where(attends, total, 1.0), 0.0)
    tl.store(inverse_ptr + head * n_queries + order, inverse, mask=order < n_queries)


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
    n_queries,
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
    first = tl.program_id(0) * TILE
    total = tl.zeros((TILE,), tl.float32)
    for start in range(0, n_queries, TILE):
        score, order, row, inside = _tile(
            query_ptr, key_ptr, which_ptr, mask_ptr, head, start, first, length, n_queries, n, width, query_stride,
            scaling, GROUP, MASKED, LISTED, WIDEN, TILE, DEPTH, WHOLE,
        )  # fmt: skip
        top = tl.load(top_ptr + head * n_queries + order, mask=inside, other=0)
        share = tl.load(inverse_ptr + head * n_queries + order, mask=inside, other=0)
        if WEIGHTED:
            is_given = tl.load(which_ptr + image * length + row, mask=inside, other=0)
            share = share * (is_given != 0)
        total += tl.sum(tl.exp(score - top[:, None]) * share[:, None], 0)
    token = first + tl.arange(0, TILE)
    tl.store(received_ptr + head * n + token, total, mask=token < n)
