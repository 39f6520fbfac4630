"""Greedy diversity selection."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_picks
from .dispatch import call


def max_min_select(
    features: Tensor, k: int, first: Tensor | None = None, mask: Tensor | None = None, length: float = 0.0
) -> Tensor:
    """Greedy max-min diversity (farthest point, k-center) on cosine distance, or one that sees lengths.

    Args:
        features: (B, N, D), any floating dtype; similarities are float32. A zero vector has distance 1
            from everything.
        k: tokens to pick, 1 <= k <= N.
        first: (B,) int64, the first pick of each row, a candidate; or (B, S), the first picks, different
            candidates, with -1 behind them in rows that have fewer, but for the first. None: the
            candidate farthest from its nearest neighbour (DivPrune, arXiv:2503.02175, Algorithm 1).
        mask: (B, N) bool, True for candidates. None: all.
        length: in [0, 1], how much lengths count beside directions: distance is
            (1 - length) (1 - cos(x, y)) + length |x - y|^2 / 2, lengths in units of the row's mean.

    Returns:
        (B, k) int64, in the order picked, no index twice, lowest index first among equals; -1 where a
        row's candidates are used up. The first j picks for k are the picks for j.

    Raises:
        ValueError: if k, length or a shape does not fit.

    On the CPU no N x N matrix is made above 4096 tokens, nor where a given pivot makes a few products of
    matrix and vector cheaper; above, the missing pivot is found block by block. On a GPU: three
    launches, whatever k is (per 2 GB of similarities; with `length` a few more).
    """
    first = _check(features, k, first, mask)
    if not 0 <= length <= 1:
        raise ValueError(f"length={length!r} must be in [0, 1]")
    return torch.ops.tokenprune.max_min_select(features, k, first, mask, float(length))


def max_sum_select(features: Tensor, k: int, first: Tensor, mask: Tensor | None = None) -> Tensor:
    """Greedy max-sum diversity: each pick has the smallest summed cosine similarity to all picks so far.

    Args:
        features: (B, N, D), any floating dtype; similarities are float32.
        k: tokens to pick, 1 <= k <= N.
        first: (B,) or (B, S) int64, as of `max_min_select`.
        mask: (B, N) bool, True for candidates. None: all.

    Returns:
        (B, k) int64, as of `max_min_select` (ToDRE, arXiv:2505.18757v2, Algorithm 1).

    Raises:
        ValueError: if k or a shape does not fit.

    Memory and launches are as of `max_min_select`.
    """
    return torch.ops.tokenprune.max_sum_select(features, k, _check(features, k, first, mask), mask)


def _check(features: Tensor, k: int, first: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """`first` as (B, S)."""
    if features.ndim != 3:
        raise ValueError(f"features must be (B, N, D), got shape {tuple(features.shape)}")
    batch, n = features.shape[:2]
    check_picks(k, batch, n, mask=mask)
    if first is not None and (first.ndim not in (1, 2) or len(first) != batch or 0 in first.shape):
        raise ValueError(f"first must be (B,) or (B, S) with B = {batch}, got shape {tuple(first.shape)}")
    return first[:, None] if first is not None and first.ndim == 1 else first


@torch.library.custom_op(
    "tokenprune::max_min_select",
    mutates_args=(),
    schema="(Tensor features, SymInt k, Tensor? first, Tensor? mask, float length) -> Tensor",
)
def _max_min(features: Tensor, k: int, first: Tensor | None, mask: Tensor | None, length: float) -> Tensor:
    return call("max_min_select", features, k, first, mask, length)


@torch.library.custom_op(
    "tokenprune::max_sum_select",
    mutates_args=(),
    schema="(Tensor features, SymInt k, Tensor first, Tensor? mask) -> Tensor",
)
def _max_sum(features: Tensor, k: int, first: Tensor, mask: Tensor | None) -> Tensor:
    return call("max_sum_select", features, k, first, mask)


@_max_min.register_fake
@_max_sum.register_fake
def _picks(features: Tensor, k: int, first: Tensor | None, mask: Tensor | None, length: float = 0.0) -> Tensor:
    return features.new_empty(len(features), k, dtype=torch.int64)
