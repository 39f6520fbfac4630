"""Greedy diversity selection."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def max_min_select(features: Tensor, k: int, first: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """Greedy max-min diversity (farthest point) on cosine distance.

    Args:
        features: (B, N, D), any floating dtype; distances are float32. A zero vector has distance 1
            from everything.
        k: tokens to pick, 1 <= k <= the number of candidates of every row.
        first: (B,) int64, the first pick of each row. None: the candidate farthest from its nearest
            neighbour (DivPrune, arXiv:2503.02175, Algorithm 1).
        mask: (B, N) bool, True for candidates. None: all.

    Returns:
        (B, k) int64, in the order picked, no index twice, lowest index first among equals.

    Raises:
        ValueError: if k or a shape does not fit.
    """
    if features.ndim != 3:
        raise ValueError(f"features must be (B, N, D), got shape {tuple(features.shape)}")
    batch, n, _ = features.shape
    candidates = n if mask is None else int(mask.sum(1).min())
    if not 1 <= k <= candidates:
        raise ValueError(f"k={k} must be between 1 and the number of candidates, {candidates}")
    unit = F.normalize(features.float(), dim=-1)
    rows = torch.arange(batch, device=features.device)
    picks = torch.empty(batch, k, dtype=torch.int64, device=features.device)
    taken = torch.zeros(batch, n, dtype=torch.bool, device=features.device) if mask is None else ~mask
    distance = 1 - unit @ unit.mT if first is None else None

    if distance is None:
        assert first is not None
        picks[:, 0] = first
    else:
        # inf on the diagonal and on non-candidates: neither is anybody's nearest neighbour
        ignored = torch.eye(n, dtype=torch.bool, device=features.device) | taken[:, None]
        isolation = distance.masked_fill(ignored, torch.inf).amin(-1)
        picks[:, 0] = isolation.masked_fill(taken, -torch.inf).argmax(-1)

    nearest = torch.full((batch, n), torch.inf, device=features.device)
    for i in range(1, k):
        last = picks[:, i - 1]
        if distance is not None:
            row = distance[rows, last]
        else:
            row = 1 - (unit @ unit[rows, last, :, None]).squeeze(-1)
        nearest = torch.minimum(nearest, row)
        taken = taken.scatter(1, last[:, None], True)  # never twice, whatever the distances say
        picks[:, i] = nearest.masked_fill(taken, -torch.inf).argmax(-1)
    return picks
