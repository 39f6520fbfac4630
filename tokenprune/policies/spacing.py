"""Places evenly spaced among others: what needs no score. Sizes are known beforehand: nothing waits for a device."""

from __future__ import annotations

import torch
from torch import Tensor


def even(count: int, length: int, device: torch.device | None = None) -> Tensor:
    """`count` places in `range(length)`, evenly spaced and centred, int64."""
    return (2 * torch.arange(count, device=device) + 1) * length // (2 * count)


def others(chosen: Tensor, n: int) -> Tensor:
    """(n - M,) places in `range(n)`, ascending, without the (M,) distinct ones that are chosen, int64."""
    taken = torch.zeros(n, dtype=torch.uint8, device=chosen.device).index_fill(0, chosen, 1)
    return taken.argsort(stable=True)[: n - len(chosen)]


def filled(chosen: Tensor, n: int, k: int) -> Tensor:
    """(k,) places in `range(n)`, ascending: those chosen, and of the others as many as are missing, evenly spaced.

    Args:
        chosen: (M,) int64, distinct, M <= k.
    """
    missing = k - len(chosen)
    if missing == 0:
        return chosen.sort().values
    rest = others(chosen, n)
    return torch.cat([chosen, rest[even(missing, len(rest), chosen.device)]]).sort().values
