"""Attention that keys receive, computed without storing the attention map."""

from __future__ import annotations

import torch
from torch import Tensor

from .dispatch import call


def attention_received(
    query: Tensor, key: Tensor, rows: Tensor | None = None, mask: Tensor | None = None, scaling: float | None = None
) -> Tensor:
    """Softmax attention that each key receives, averaged over heads and over the given queries.

    Args:
        query: (B, H, Q, d).
        key: (B, H or H_kv, N, d); fewer key heads are shared by groups of query heads.
        rows: which queries: (R,) int64 indices, the same for the whole batch, or (B, Q) bool. None: all.
        mask: (B, N) or (B, Q, N) bool, True for keys that a query may attend to. None: all.
        scaling: factor of the scores. None: 1 / sqrt(d).

    Returns:
        (B, N), float32 (float64 for float64 inputs), detached. A row of the batch without any query is 0, and a query
        that may attend to no key counts as 0.

    Raises:
        ValueError: if a shape does not fit.

    Memory is O(B H N) and one tile of scores, never Q x N.
    """
    if query.ndim != 4 or key.ndim != 4 or query.shape[1] % key.shape[1] or query.shape[3] != key.shape[3]:
        raise ValueError(
            "query must be (B, H, Q, d) and key (B, H_kv, N, d) with H a multiple of H_kv, "
            f"got {tuple(query.shape)} and {tuple(key.shape)}"
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    received: Tensor = torch.ops.tokenprune.attention_received(query.detach(), key.detach(), rows, mask, scaling)
    return received


@torch.library.custom_op(
    "tokenprune::attention_received",
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor? rows, Tensor? mask, float scaling) -> Tensor",
)
def _attention_received(query: Tensor, key: Tensor, rows: Tensor | None, mask: Tensor | None, scaling: float) -> Tensor:
    received: Tensor = call("attention_received", query, key, rows, mask, scaling)
    return received


@_attention_received.register_fake
def _(query: Tensor, key: Tensor, rows: Tensor | None, mask: Tensor | None, scaling: float) -> Tensor:
    return query.new_empty(len(query), key.shape[2], dtype=torch.promote_types(query.dtype, torch.float32))
