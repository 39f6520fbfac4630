"""Density peaks among tokens (DPC-kNN), shared by policies that merge tokens around dense ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..ops import topk_select


def density_peaks(features: Tensor, count: int, neighbours: int) -> tuple[Tensor, Tensor]:
    """The tokens of largest density times distance to denser ones.

    The density of a token is exp of minus the mean squared distance to its nearest tokens, of which it is one itself.
    Distances are Euclidean, over the square root of the width. Of equally dense tokens, those of lower index count as
    denser.

    Args:
        features: (M, D).
        count: how many, 1 <= count <= M.
        neighbours: nearest tokens that the density is computed from, >= 1.

    Returns:
        (count,) int64 indices, ascending, and (M, M) distances.
    """
    m = len(features)
    features = features.float()
    distance = torch.cdist(features, features) / math.sqrt(features.shape[1])
    near = distance.topk(min(neighbours, m), largest=False).values
    density = torch.exp(-near.square().mean(1))
    index = torch.arange(m, device=features.device)
    denser = (density[None] > density[:, None]) | (density[None] == density[:, None]) & (index < index[:, None])
    to_denser = torch.where(denser, distance, distance.max()).amin(1)
    return topk_select(density * to_denser, count), distance
