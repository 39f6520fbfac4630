"""What policies share that merge tokens: where they do it, and how the result is put back."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .types import Selection, VisualTokens


def mergeable(tokens: VisualTokens) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """(N, D') features to merge, and what makes (K, D) tokens of (K, D') merged ones.

    Before the projector where tokens there are one-to-one with those after it, as papers do; else after it.
    """
    if tokens.encoder_features is not None and tokens.project is not None:
        return tokens.encoder_features, tokens.project
    return tokens.features, lambda merged: merged


def with_merged(tokens: VisualTokens, kept: Tensor, places: Tensor, merged: Tensor) -> Selection:
    """The kept tokens as they are, and merged ones at places of their own.

    Args:
        tokens: of the visual input.
        kept: (K,) int64, distinct, in any order.
        places: (M,) int64, the token whose place each merged one takes; distinct, none of them kept.
        merged: (M, D), behind the projector.
    """
    features = tokens.features.clone()
    features[places] = merged.to(features.dtype)
    indices = torch.cat([kept, places]).sort().values
    return Selection(indices, features[indices])


def summed(features: Tensor, group: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Sums (n, D) of (M, D) features by group, (M,) int64 in `range(n)`; how many there are of each, (n, 1) int64."""
    total = features.new_zeros(n, features.shape[1]).index_add_(0, group, features)
    return total, group.new_zeros(n, 1).index_add_(0, group, torch.ones_like(group)[:, None])
