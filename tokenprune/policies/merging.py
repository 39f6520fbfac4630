"""Merging of tokens, shared by several policies: which features are merged, and where the results go."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .types import Selection, VisualTokens


def mergeable(tokens: VisualTokens) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """(N, D') features to merge, and a function from (K, D') merged features to (K, D) tokens.

    The features are those before the projector where they match the projected tokens one-to-one, as papers have it,
    and the function is the projector. Elsewhere they are the projected tokens.
    """
    if tokens.encoder_features is not None and tokens.project is not None:
        return tokens.encoder_features, tokens.project
    return tokens.features, lambda merged: merged


def with_merged(tokens: VisualTokens, kept: Tensor, targets: Tensor, merged: Tensor) -> Selection:
    """A selection of tokens that stay unchanged and of merged tokens.

    Args:
        tokens: the visual input.
        kept: (K,) int64, tokens that stay unchanged; distinct, in any order.
        targets: (M,) int64, tokens that the merged ones replace; distinct, none of them in `kept`.
        merged: (M, D), projected.

    Only features of tokens that stay are copied.
    """
    order = torch.cat([kept, targets]).sort()
    features = torch.cat([tokens.features[kept], merged.to(tokens.features.dtype)])
    return Selection(order.values, features[order.indices])


def group_sum(features: Tensor, group: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Sums of features by group.

    Args:
        features: (M, D).
        group: (M,) int64, the group of each, in `range(n)`; n for those in no group.
        n: number of groups.

    Returns:
        the sums, (n, D), and the groups' sizes, (n, 1) int64.
    """
    total = features.new_zeros(n + 1, features.shape[1]).index_add_(0, group, features)
    size = group.new_zeros(n + 1, 1).index_add_(0, group, torch.ones_like(group)[:, None])
    return total[:n], size[:n]
