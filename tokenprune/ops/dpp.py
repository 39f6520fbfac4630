"""Greedy selection by a determinantal point process."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_picks
from .dispatch import call


def dpp_select(features: Tensor, quality: Tensor, k: int, mask: Tensor | None = None) -> Tensor:
    """Greedy MAP inference of a DPP with kernel L_ij = q_i cos(x_i, x_j) q_j.

    Each pick is the candidate that increases the log determinant of the picks' kernel most. That is the candidate of
    largest variance given the picks (fast greedy MAP, arXiv:1709.05135, Algorithm 1; used by CDPruner,
    arXiv:2506.10967).

    Args:
        features: (B, N, D), any floating dtype; similarities are float32.
        quality: (B, N), weight q of each token, >= 0.
        k: tokens to pick, 1 <= k <= N.
        mask: (B, N) bool, True for candidates. None: all.

    Returns:
        (B, k) int64, in the order picked, no index twice; -1 after a row's candidates are used up. The first j of k
        picks are the picks for j. Once no candidate has more than a ten-thousandth of its variance left (duplicates,
        or more picks than the kernel's rank), the next picks are spread evenly over the indices that are left: the
        candidate with the smallest `index * 2654435769 mod 2^32` is next.

    Raises:
        ValueError: if k or a shape does not fit.
    """
    if features.ndim != 3 or quality.shape != features.shape[:2]:
        raise ValueError(
            f"features must be (B, N, D) and quality (B, N), got {tuple(features.shape)} and {tuple(quality.shape)}"
        )
    check_picks(k, *quality.shape, mask=mask)
    picks: Tensor = torch.ops.tokenprune.dpp_select(features, quality, k, mask)
    return picks


@torch.library.custom_op(
    "tokenprune::dpp_select",
    mutates_args=(),
    schema="(Tensor features, Tensor quality, SymInt k, Tensor? mask) -> Tensor",
)
def _dpp(features: Tensor, quality: Tensor, k: int, mask: Tensor | None) -> Tensor:
    picks: Tensor = call("dpp_select", features, quality, k, mask)
    return picks


@_dpp.register_fake
def _(features: Tensor, quality: Tensor, k: int, mask: Tensor | None) -> Tensor:
    return features.new_empty(len(features), k, dtype=torch.int64)
