"""When visual tokens leave inside a decoder, and how many are left then."""

from __future__ import annotations

from dataclasses import dataclass

from .validate import reals


@dataclass(frozen=True)
class Schedule:
    """Cuts at several depths of a decoder, the last of which meets the budget.

    Args:
        depths: where to cut, as shares of the decoder's layers, ascending, in (0, 1).
        counts: tokens after each cut, in proportion: the last stands for the budget. `(300, 200, 110)` with a
            budget of 110 is just that. None: each cut leaves the same share of what was there.

    Raises:
        ValueError: for anything else.
    """

    depths: tuple[float, ...]
    counts: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        reals(self, "depths", above=0, below=1, ascending=True, what="shares of the layers")
        if self.counts is None:
            return
        reals(self, "counts", above=0, descending=True)
        if len(self.counts) != len(self.depths):
            raise ValueError(f"counts={self.counts!r} must have one number for each of depths={self.depths!r}")

    def cuts(self, n_layers: int, lowest: int = 1) -> dict[int, int]:
        """By the decoder layer before which tokens leave: the number of the cut. Of cuts that fall on one
        layer in a shallow decoder, the last counts; none is below `lowest`."""
        return {max(lowest, int(depth * n_layers)): i for i, depth in enumerate(self.depths)}

    def left(self, cut: int, n: int, n_keep: int) -> int:
        """Tokens that stay at a cut, of `n` that entered the decoder, when `n_keep` are left in the end."""
        if self.counts is None:
            share = (n_keep / n) ** ((cut + 1) / len(self.depths)) if n else 0
            wanted = round(n * share)
        else:
            wanted = round(n_keep * self.counts[cut] / self.counts[-1])
        return n_keep if cut == len(self.depths) - 1 else min(n, max(n_keep, wanted))
