"""Evenly spaced indices, and complements of index sets. All sizes are known beforehand: nothing waits for a device."""

from __future__ import annotations

import torch
from torch import Tensor


def evenly_spaced(count: int, length: int, device: torch.device | None = None) -> Tensor:
    """(count,) int64 indices in `range(length)`, ascending, evenly spaced and centred; `count` <= `length`."""
    return (2 * torch.arange(count, device=device) + 1) * length // (2 * count)


def complement(chosen: Tensor, n: int) -> Tensor:
    """(..., n - M) int64 indices in `range(n)`, ascending, not among the (..., M) distinct ones in `chosen`."""
    if chosen.device.type == "cpu" and chosen.ndim == 1:  # nothing waits for the host
        return torch.ones(n, dtype=torch.bool).index_fill_(0, chosen, False).nonzero()[:, 0]
    is_chosen = torch.zeros(*chosen.shape[:-1], n, dtype=torch.uint8, device=chosen.device).scatter(-1, chosen, 1)
    return is_chosen.argsort(dim=-1, stable=True)[..., : n - chosen.shape[-1]]


def fill_evenly(chosen: Tensor, n: int, k: int) -> Tensor:
    """(..., k) int64 indices in `range(n)`, ascending: the chosen ones, and evenly spaced ones of the others.

    Args:
        chosen: (..., M) int64, distinct, M <= k.
        n: number of tokens.
        k: number of indices wanted, at most n.
    """
    missing = k - chosen.shape[-1]
    if missing == 0:
        return chosen.sort().values
    rest = complement(chosen, n)
    spaced = rest[..., evenly_spaced(missing, rest.shape[-1], chosen.device)]
    return torch.cat([chosen, spaced], dim=-1).sort().values
