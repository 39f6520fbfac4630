"""Greedy facility location: tokens that cover targets."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_picks
from .dispatch import call


def coverage_select(similarity: Tensor, k: int, quality: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """Greedy maximum coverage (facility location; Nemhauser et al. 1978; used by SCOPE, arXiv:2510.24214).

    The coverage of a target is its largest similarity to a pick, at least 0. Each pick is the candidate with the
    largest gain: what it adds to the coverage of all targets, summed, times its quality.

    Args:
        similarity: (B, R, N) floating, how well token n covers target r. Gains are float32 (float64 for float64). To
            weight targets, multiply its rows.
        k: tokens to pick, 1 <= k <= N.
        quality: (B, N), factors of the gains, >= 0. None: ones.
        mask: (B, N) bool, True for candidates. None: all.

    Returns:
        (B, k) int64, in the order picked, no index twice, the lowest index first among equals; -1 after a row's
        candidates are used up. The first j of k picks are the picks for j.

    Raises:
        ValueError: if k or a shape does not fit.

    Gains never grow, so after a pick only those that could be the largest are computed again.
    """
    if similarity.ndim != 3:
        raise ValueError(f"similarity must be (B, R, N), got shape {tuple(similarity.shape)}")
    batch, _, n = similarity.shape
    check_picks(k, batch, n, quality=quality, mask=mask)
    picks: Tensor = torch.ops.tokenprune.coverage_select(similarity, k, quality, mask)
    return picks


@torch.library.custom_op(
    "tokenprune::coverage_select",
    mutates_args=(),
    schema="(Tensor similarity, SymInt k, Tensor? quality, Tensor? mask) -> Tensor",
)
def _coverage(similarity: Tensor, k: int, quality: Tensor | None, mask: Tensor | None) -> Tensor:
    picks: Tensor = call("coverage_select", similarity, k, quality, mask)
    return picks


@_coverage.register_fake
def _(similarity: Tensor, k: int, quality: Tensor | None, mask: Tensor | None) -> Tensor:
    return similarity.new_empty(len(similarity), k, dtype=torch.int64)
