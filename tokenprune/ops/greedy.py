"""Greedy diversity selection."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_picks
from .dispatch import call


def max_min_select(
    features: Tensor, k: int, first: Tensor | None = None, mask: Tensor | None = None, length: float = 0.0
) -> Tensor:
    """Greedy max-min diversity (farthest point, k-center): each pick is the candidate farthest from its nearest pick.

    Args:
        features: (B, N, D), any floating dtype; similarities are float32. A zero vector has cosine 0 with
            everything.
        k: tokens to pick, 1 <= k <= N.
        first: (B,) int64, the first pick of each row; or (B, S), its first picks, in rows with fewer of them filled
            up with -1 (not in the first column). They must be distinct candidates. None: the first pick is the
            candidate farthest from its nearest neighbour (DivPrune, arXiv:2503.02175, Algorithm 1).
        mask: (B, N) bool, True for candidates. None: all.
        length: weight of vector lengths in the distance, in [0, 1]. The distance of x and y is
            (1 - length) (1 - cos(x, y)) + length |x - y|^2 / 2, with x and y divided by the mean length of the row's
            candidates. 0 is cosine distance.

    Returns:
        (B, k) int64, in the order picked, no index twice, the lowest index first among equals; -1 after a row's
        candidates are used up. The first j of k picks are the picks for j.

    Raises:
        ValueError: if k, length or a shape does not fit.

    On the CPU no N x N matrix is made above 4096 tokens: only similarities that could decide a pick are computed there,
    in blocks. Nor is it made where `first` is given and k products of matrix and vector are cheaper. On a GPU there are
    three kernel launches whatever k is, per 2 GB of similarities; with `length` a few more. An input that alone would
    need more than 2 GB has a few launches for each pick, and no N x N matrix.
    """
    first = _check(features, k, first, mask)
    if not 0 <= length <= 1:
        raise ValueError(f"length={length!r} must be in [0, 1]")
    picks: Tensor = torch.ops.tokenprune.max_min_select(features, k, first, mask, float(length))
    return picks


def max_sum_select(features: Tensor, k: int, first: Tensor, mask: Tensor | None = None) -> Tensor:
    """Greedy max-sum diversity: each pick has the smallest summed cosine similarity to all picks so far.

    ToDRE, arXiv:2505.18757v2, Algorithm 1.

    Args:
        features: (B, N, D), any floating dtype; similarities are float32.
        k: tokens to pick, 1 <= k <= N.
        first: (B,) or (B, S) int64, as `max_min_select` takes it.
        mask: (B, N) bool, True for candidates. None: all.

    Returns:
        (B, k) int64, as `max_min_select` returns it.

    Raises:
        ValueError: if k or a shape does not fit.

    Launches are those of `max_min_select`. Above 4096 tokens on the CPU, a row of similarities is computed for each
    pick.
    """
    picks: Tensor = torch.ops.tokenprune.max_sum_select(features, k, _check(features, k, first, mask), mask)
    return picks


def _check(features: Tensor, k: int, first: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """Check shapes and k; `first` as (B, S)."""
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
    picks: Tensor = call("max_min_select", features, k, first, mask, length)
    return picks


@torch.library.custom_op(
    "tokenprune::max_sum_select",
    mutates_args=(),
    schema="(Tensor features, SymInt k, Tensor first, Tensor? mask) -> Tensor",
)
def _max_sum(features: Tensor, k: int, first: Tensor, mask: Tensor | None) -> Tensor:
    picks: Tensor = call("max_sum_select", features, k, first, mask)
    return picks


@_max_min.register_fake
@_max_sum.register_fake
def _picks(features: Tensor, k: int, first: Tensor | None, mask: Tensor | None, length: float = 0.0) -> Tensor:
    return features.new_empty(len(features), k, dtype=torch.int64)
