"""Whole shares of a budget."""

from __future__ import annotations

import math

from torch import Tensor


def shares(weights: Tensor, sizes: list[int], total: int) -> list[int]:
    """Whole shares of `total` in proportion to `weights` (P,), none above its size, by largest remainder.

    What a full part cannot take is shared out again among the others; equal remainders go to the first.
    """
    out = [0] * len(sizes)
    wanted = weights.double().clamp(min=0).tolist()
    while (left := total - sum(out)) > 0:
        free = [i for i, size in enumerate(sizes) if out[i] < size]
        whole = sum(wanted[i] for i in free)
        part = {i: left * wanted[i] / whole if whole > 0 else left / len(free) for i in free}
        given = {i: min(sizes[i] - out[i], math.floor(part[i])) for i in free}
        if not any(given.values()):  # only remainders are left
            for i in sorted(free, key=lambda i: (-part[i], i))[:left]:
                out[i] += 1
            continue
        for i, n in given.items():
            out[i] += n
    return out
