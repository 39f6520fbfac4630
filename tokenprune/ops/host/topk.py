"""The best-scored tokens on the host."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def topk_gather(
    scores: Tensor, features: Tensor, k: int, mask: Tensor | None, positions: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    scores = scores.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=torch.finfo(scores.dtype).min)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    least = scores.topk(k, sorted=False).values.amin(1, keepdim=True)
    above, ties = scores > least, scores == least
    kept = above | ties & (ties.cumsum(1) <= k - above.sum(1, keepdim=True))
    indices = kept.nonzero()[:, 1].clone().view(len(scores), k)
    image = torch.arange(len(scores), device=scores.device)[:, None]
    gathered = features[image, indices]
    moved = indices.new_empty(0, *indices.shape) if positions is None else positions[:, image, indices]
    if mask is not None:
        # Tokens that are no candidates go to the end.
        surplus = ~mask[image, indices]
        order = surplus.int().sort(dim=1, stable=True).indices
        surplus, indices = surplus.gather(1, order), indices.gather(1, order)
        gathered, moved = gathered[image, order], moved[:, image, order]
        indices[surplus], gathered[surplus], moved[:, surplus] = -1, 0, 0
    return indices, gathered, moved
