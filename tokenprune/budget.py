"""How many visual tokens stay, and how a number of tokens is split among parts. Nothing here needs torch.

A `Budget` is exact and known before anything is selected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Protocol

_ACCEPTED = "accepted: a float in (0, 1] (keep ratio), an int >= 1 (tokens per visual input), or None (family default)"


class TokenBudget(Protocol):
    """How many visual tokens stay: `Budget`, `IntermediateBudget`, `AdaptiveBudget` or `PolicysBudget`."""

    @property
    def keeps_all(self) -> bool:
        """Whether everything stays, whatever the input."""

    def count(self, n: int) -> int | None:
        """Tokens kept of an input of `n`; None: the policy decides, or the input's tokens do."""


@dataclass(frozen=True)
class Budget:
    """Tokens kept of each visual input.

    Args:
        keep: a float in (0, 1] is a ratio of each input's tokens; an int >= 1 is a number of tokens.
            `1.0` keeps everything, `1` keeps one token.

    Raises:
        ValueError: for anything else, a bool, a string and NaN included.
    """

    keep: float | int

    def __post_init__(self) -> None:
        keep = self.keep
        if isinstance(keep, bool) or not isinstance(keep, Real):
            raise ValueError(f"keep={keep!r} is no number; {_ACCEPTED}")
        if isinstance(keep, Integral):
            if keep < 1:
                raise ValueError(f"keep={keep!r} is too small; {_ACCEPTED}")
            object.__setattr__(self, "keep", int(keep))
        else:
            if not (math.isfinite(keep) and 0 < keep <= 1):
                raise ValueError(f"keep={keep!r} is out of range; {_ACCEPTED}")
            object.__setattr__(self, "keep", float(keep))

    @property
    def keeps_all(self) -> bool:
        """Whether everything stays, whatever the input."""
        return self.keep == 1.0 and isinstance(self.keep, float)

    def intermediate(self, done: float, total: float) -> Budget | IntermediateBudget:
        """The budget of a stage after which `done` of `total` weight has acted; this budget for the last stage.

        Args:
            done: sum of the `budget_weight`s of this stage's policy and of those before it.
            total: sum over all policies that share this budget.
        """
        return self if done == total else IntermediateBudget(self, done / total)

    def count(self, n: int) -> int:
        """Tokens kept of `n`: `max(1, round(keep * n))` for a ratio (halves to even), `min(keep, n)` else."""
        if isinstance(self.keep, int):
            return min(self.keep, n)
        return max(1, round(self.keep * n))


@dataclass(frozen=True)
class IntermediateBudget:
    """Tokens kept after one of several stages that share a final budget: `ratio ** exponent` of all tokens.

    Args:
        final: the budget after the last stage.
        exponent: in (0, 1), the share of the total weight that has acted by then. With two stages of equal weight
            it is 0.5 after the first, which keeps the geometric mean of all tokens and of the final count.
    """

    final: Budget
    exponent: float

    @property
    def keeps_all(self) -> bool:
        """Whether everything stays, whatever the input."""
        return self.final.keeps_all

    def count(self, n: int) -> int:
        """Tokens kept of `n`, rounded (halves to even), at least 1; 0 of 0 if the final budget is a number."""
        keep = self.final.keep
        if n == 0 and isinstance(keep, int):
            return 0
        final_ratio = keep if isinstance(keep, float) else self.final.count(n) / n
        ratio: float = final_ratio**self.exponent
        return max(1, round(ratio * n))


@dataclass(frozen=True)
class PolicysBudget:
    """No number: the policy decides how many tokens stay."""

    @property
    def keeps_all(self) -> bool:
        """False: how much stays is not known beforehand."""
        return False

    def count(self, n: int) -> None:
        """None: the policy decides."""
        return None


def apportion(total: int, sizes: Sequence[int]) -> list[int]:
    """Split `total` in proportion to `sizes`, no share above its size; the shares sum to `total`.

    Each part's cumulative share is rounded down, so the remainder is spread evenly along the parts.

    Raises:
        ValueError: if `total` exceeds the sum of the sizes.
    """
    whole = sum(sizes)
    if total > whole:
        raise ValueError(f"cannot share {total} tokens out over {whole}")
    shares, size_so_far, given = [], 0, 0
    for size in sizes:
        size_so_far += size
        share = total * size_so_far // whole - given  # never above size, since total <= whole
        shares.append(share)
        given += share
    return shares


def apportion_by_weight(total: int, sizes: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Split `total` in proportion to `weights`, no share above its size, by largest remainder.

    A part whose proportional share is its size or more gets its size, and the rest is split among the others. Their
    shares are rounded down, and what is missing then goes to the largest remainders, one each; among equal ones to
    the first part. Negative weights count as 0; if all remaining weights are 0, the remaining parts count alike.

    Args:
        total: at most the sum of the sizes.
        sizes: (P,) largest share of each part.
        weights: (P,), one for each part.

    Returns:
        (P,) shares that sum to `total`.
    """
    wanted = [0.0 if weight < 0 else float(weight) for weight in weights]
    shares = [0] * len(sizes)
    free = [i for i, size in enumerate(sizes) if size > 0]
    missing = total
    while free:
        weight = sum(wanted[i] for i in free)
        quota = {i: missing * wanted[i] / weight if weight > 0 else missing / len(free) for i in free}
        full = [i for i in free if quota[i] >= sizes[i]]
        if not full:
            break
        for i in full:
            shares[i] = sizes[i]
            missing -= sizes[i]
        free = [i for i in free if quota[i] < sizes[i]]
    for i in free:
        shares[i] = math.floor(quota[i])
        missing -= shares[i]
    for i in sorted(free, key=lambda i: (shares[i] - quota[i], i))[:missing]:
        shares[i] += 1
    return shares
