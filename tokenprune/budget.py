"""How many visual tokens stay: exact, and known before anything is selected."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real

_ACCEPTED = "accepted: a float in (0, 1] (keep ratio), an int >= 1 (tokens per visual input), or None (family default)"


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

    def part(self, done: float, whole: float) -> Budget | PartBudget:
        """What is left when `done` of the `whole` way to this budget is gone."""
        return self if done == whole else PartBudget(self, done / whole)

    def count(self, n: int) -> int:
        """Tokens kept of `n`: `max(1, round(keep * n))` for a ratio (halves to even), `min(keep, n)` else."""
        if isinstance(self.keep, int):
            return min(self.keep, n)
        return max(1, round(self.keep * n))


@dataclass(frozen=True)
class PartBudget:
    """What one of several stages leaves: as large a share as each of the others.

    Args:
        final: what the last leaves.
        way: how much of the way to it is done; of two stages a half, the geometric mean of all tokens and
            of the final number.
    """

    final: Budget
    way: float

    @property
    def keeps_all(self) -> bool:
        return self.final.keeps_all

    def count(self, n: int) -> int:
        if isinstance(self.final.keep, float):
            return max(1, round(self.final.keep**self.way * n))
        return max(1, round(n * (self.final.count(n) / n) ** self.way)) if n else 0


@dataclass(frozen=True)
class AdaptiveBudget:
    """No number at all: the policy finds its own."""

    @property
    def keeps_all(self) -> bool:
        return False

    def count(self, n: int) -> None:
        return None


def spread(total: int, sizes: list[int]) -> list[int]:
    """Share `total` out in proportion to `sizes`, none above its size; the shares sum to `total`.

    Each part's cumulative share is rounded down, so that the remainder falls evenly along the parts.

    Raises:
        ValueError: if `total` exceeds the sum of the sizes.
    """
    whole = sum(sizes)
    if total > whole:
        raise ValueError(f"cannot share {total} tokens out over {whole}")
    shares, seen, given = [], 0, 0
    for size in sizes:
        seen += size
        share = total * seen // whole - given  # never above size, since total <= whole
        shares.append(share)
        given += share
    return shares
