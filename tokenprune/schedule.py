"""At which decoder layers visual tokens are dropped, and how many stay at each."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from .validate import reals


@dataclass(frozen=True)
class Schedule:
    """Cuts at several depths of a decoder. The last cut meets the budget.

    Args:
        depths: where to cut, as shares of the decoder's layers, each in (0, 1), ascending.
        counts: tokens after each cut, relative to each other, all > 0, none larger than the one before it. They are
            scaled so that the last equals the budget: `(300, 200, 110)` with a budget of 110 keeps just these
            numbers. None: each cut keeps the same ratio of the tokens before it.

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
        """The cuts of a decoder of `n_layers`: by the layer before which tokens are dropped, the cut's number.

        A depth becomes `max(lowest, int(depth * n_layers))`. If several cuts fall on one layer of a shallow
        decoder, the last of them counts.
        """
        return {max(lowest, int(depth * n_layers)): i for i, depth in enumerate(self.depths)}

    def kept(self, cut: int, n: int, n_keep: int) -> int:
        """Tokens that stay at a cut.

        Args:
            cut: number of the cut, from 0.
            n: tokens that entered the decoder.
            n_keep: tokens after the last cut.
        """
        return n_keep if cut == len(self.depths) - 1 else min(n, max(n_keep, round(self.scaled(cut, n, n_keep))))

    def scaled(self, cut: int, n: int, n_keep: float) -> float:
        """Tokens that stay at a cut, not rounded. They may exceed `n`, where `counts` are given.

        Args:
            cut: number of the cut, from 0.
            n: tokens that entered the decoder.
            n_keep: tokens after the last cut, not rounded.
        """
        if self.counts is not None:
            return n_keep * self.counts[cut] / self.counts[-1]
        return float(n * (n_keep / n) ** ((cut + 1) / len(self.depths))) if n else 0.0

    def __init_subclass__(cls) -> None:
        if "left" in vars(cls) and "kept" not in vars(cls):
            message = f"{cls.__name__}.left is deprecated: define kept"
            warnings.warn(message, DeprecationWarning, stacklevel=2)
            cls.kept = vars(cls)["left"]  # type: ignore[method-assign]

    def left(self, cut: int, n: int, n_keep: int) -> int:
        """Former name of `kept`."""
        warnings.warn("Schedule.left is deprecated: call Schedule.kept", DeprecationWarning, stacklevel=2)
        return self.kept(cut, n, n_keep)
