"""Greedy selection by a determinantal point process."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_picks
from .dispatch import call


def dpp_select(features: Tensor, quality: Tensor, k: int, mask: Tensor | None = None) -> Tensor:
    """Greedy MAP inference of a DPP with kernel L_ij = q_i cos(x_i, x_j) q_j.

    Each pick adds most to log det of the picks' kernel: the candidate of largest variance given the
    picks (fast greedy MAP, arXiv:1709.05135, Algorithm 1; used by CDPruner, arXiv:2506.10967).

    Args:
        features: (B, N, D), any floating dtype; similarities are float32.
        quality: (B, N), how much each token is wanted, >= 0.
        k: tokens to pick, 1 <= k <= N.
        mask: (B, N) bool, True for candidates. None: all.

    Returns:
        (B, k) int64, in the order picked, no index twice; -1 where a row's candidates are used up. The
        first j picks for k are the picks for j. Where no candidate has more than a ten-thousandth of
        its variance left (duplicates, ranks used up), the lowest index is next.

    Raises:
        ValueError: if k or a shape does not fit.
    """
    if features.ndim != 3 or quality.shape != features.shape[:2]:
        raise ValueError(
            f"features must be (B, N, D) and quality (B, N), got {tuple(features.shape)} and {tuple(quality.shape)}"
        )
    check_picks(k, *quality.shape, mask=mask)
    return torch.ops.tokenprune.dpp_select(features, quality, k, mask)


@torch.library.custom_op(
    "tokenprune::dpp_select",
    mutates_args=(),
    schema="(Tensor features, Tensor quality, SymInt k, Tensor? mask) -> Tensor",
)
def _dpp(features: Tensor, quality: Tensor, k: int, mask: Tensor | None) -> Tensor:
    return call("dpp_select", features, quality, k, mask)


@_dpp.register_fake
def _(features: Tensor, quality: Tensor, k: int, mask: Tensor | None) -> Tensor:
    return features.new_empty(len(features), k, dtype=torch.int64)
