"""Attention received on the host, a tile of queries at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from .products import TILE


@torch.no_grad()
def attention_received(query: Tensor, key: Tensor, rows: Tensor | None, mask: Tensor | None, scaling: float) -> Tensor:
    dtype = torch.promote_types(query.dtype, torch.float32)
    batch, heads, length, width = query.shape
    groups, n = key.shape[1:3]
    weights = None  # (B, Q), where rows of the batch have different queries
    index = torch.arange(length, device=query.device)
    if rows is not None and rows.dtype == torch.bool:
        weights, index = rows, rows.any(0).nonzero()[:, 0]
    elif rows is not None:
        index = rows.to(query.device)
    keys = key.to(dtype).mT
    received = torch.zeros(batch, n, dtype=dtype, device=query.device)
    step = max(1, TILE // max(1, batch * heads * n))
    for some in index.split(step):
        part = query[:, :, some].to(dtype).view(batch, groups, -1, width)  # query heads that share a key head
        scores = (part @ keys).view(batch, heads, len(some), n).mul_(scaling)
        if mask is not None:
            visible = mask[:, None, None] if mask.ndim == 2 else mask[:, None, some]
            scores = scores.masked_fill_(~visible, -torch.inf)
        attention = scores.softmax(-1)
        if mask is not None:
            attention = attention.nan_to_num_(0)  # a query that may attend to no key
        if weights is not None:
            attention = attention * weights[:, None, some, None]
        received += attention.mean(1).sum(1)
    count = len(index) if weights is None else weights.sum(1, keepdim=True)
    return received / max(count, 1) if isinstance(count, int) else received / count.clamp(min=1)
