"""Greedy facility location: tokens that cover targets."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_picks
from .dispatch import call


def coverage_select(similarity: Tensor, k: int, quality: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """Greedy maximum coverage (facility location; Nemhauser et al. 1978).

    A target is covered as well as the most similar pick covers it, from 0 on. Each pick is the candidate
    with the largest gain, sum over targets of what it adds to their coverage, times its quality.

    Args:
        similarity: (B, R, N), how well token n covers target r, floating; gains are float32. Weights of
            targets are factors of its rows.
        k: tokens to pick, 1 <= k <= N.
        quality: (B, N), factors of the gains, >= 0. None: ones.
        mask: (B, N) bool, True for candidates. None: all.

    Returns:
        (B, k) int64, in the order picked, no index twice, lowest index first among equals; -1 where a
        row's candidates are used up. The first j picks for k are the picks for j.

    Raises:
        ValueError: if k or a shape does not fit.

    Gains never grow, so only those that could be the largest are computed again at a pick.
    """
    if similarity.ndim != 3:
        raise ValueError(f"similarity must be (B, R, N), got shape {tuple(similarity.shape)}")
    batch, _, n = similarity.shape
    check_picks(k, batch, n, quality=quality, mask=mask)
    return torch.ops.tokenprune.coverage_select(similarity, k, quality, mask)


@torch.library.custom_op(
    "tokenprune::coverage_select",
    mutates_args=(),
    schema="(Tensor similarity, SymInt k, Tensor? quality, Tensor? mask) -> Tensor",
)
def _coverage(similarity: Tensor, k: int, quality: Tensor | None, mask: Tensor | None) -> Tensor:
    return call("coverage_select", similarity, k, quality, mask)


@_coverage.register_fake
def _(similarity: Tensor, k: int, quality: Tensor | None, mask: Tensor | None) -> Tensor:
    return similarity.new_empty(len(similarity), k, dtype=torch.int64)
