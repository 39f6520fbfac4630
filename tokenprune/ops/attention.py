"""Attention that keys receive, without the attention map."""

from __future__ import annotations

import torch
from torch import Tensor

_TILE = 1 << 22  # elements of the score tile: 16 MB in float32, whatever N is


def attention_received(
    query: Tensor, key: Tensor, rows: Tensor | None = None, mask: Tensor | None = None, scaling: float | None = None
) -> Tensor:
    """Softmax attention each key receives, averaged over heads and over the asked queries.

    Args:
        query: (B, H, Q, d).
        key: (B, H or H_kv, N, d); fewer key heads are shared by groups of query heads.
        rows: which queries: (R,) int64 for all of the batch, or (B, Q) bool per batch row. None: all.
        mask: (B, N) or (B, Q, N) bool, True where a query may look. None: everywhere.
        scaling: of the scores; None: 1 / sqrt(d).

    Returns:
        (B, N), float32 (float64 for float64 inputs). A row of a batch that asks for no query is 0.

    Memory is O(B N) and one tile of scores: never Q x N.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    batch, heads, length, width = query.shape
    scaling = width**-0.5 if scaling is None else scaling
    weights = None  # (B, Q) of asked queries, where rows of the batch ask for different ones
    index = torch.arange(length, device=query.device)
    if rows is not None and rows.dtype == torch.bool:
        weights, index = rows, rows.any(0).nonzero()[:, 0]
    elif rows is not None:
        index = rows.to(query.device)
    keys = key.to(dtype).repeat_interleave(heads // key.shape[1], 1).mT
    received = torch.zeros(batch, key.shape[2], dtype=dtype, device=query.device)
    step = max(1, _TILE // max(1, batch * heads * key.shape[2]))
    for some in index.split(step):
        scores = query[:, :, some].to(dtype) @ keys * scaling
        if mask is not None:
            seen = mask[:, None, None] if mask.ndim == 2 else mask[:, None, some]
            scores = scores.masked_fill(~seen, -torch.inf)
        attention = scores.softmax(-1).nan_to_num(0)  # a query that may look nowhere
        if weights is not None:
            attention = attention * weights[:, None, some, None]
        received += attention.mean(1).sum(1)
    count = len(index) if weights is None else weights.sum(1, keepdim=True)
    return received / max(count, 1) if isinstance(count, int) else received / count.clamp(min=1)
