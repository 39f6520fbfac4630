"""The report of a prefill: what became of each visual input."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ..policies.types import Grid
from .families.base import Kind


class Cut(NamedTuple):
    """What a visual input has left from a decoder layer on: the kept tokens' indices within it, ascending."""

    layer: int
    indices: list[int]


@dataclass(frozen=True)
class Record:
    """What the last prefill did to one visual input.

    Attributes:
        sample: row in the batch.
        visual: index among the row's visual inputs.
        kind: `"image"` or `"video"`.
        n_before: visual tokens of the input, newline tokens included; those that the attention mask hides are not
            counted.
        n_after: visual tokens kept.
        indices: the kept ones, ascending, within this input.
        grid: (T, H, W) of its raster; None if it is made of several, or unknown.
        grids: all its rasters in order, newline tokens left out; None if unknown.
        separators: indices, within this input, of its newline tokens.
        select_ms: this input's share, by its tokens, of the wall time of selecting in the whole batch, at all stages,
            milliseconds.
        cuts: per layer of a decoder stage before which some left, what that layer and those above hold.
        select_ms_by_stage: `select_ms` by stage: `"encoder"`, `"vision"`, `"decoder"`; without stages that took no
            time. On a GPU the encoder stage does not wait for its kernels, so its time is that of launching them.
    """

    sample: int
    visual: int
    kind: Kind
    n_before: int
    n_after: int
    indices: list[int]
    grid: Grid | None
    grids: tuple[Grid, ...] | None
    select_ms: float
    separators: tuple[int, ...] = ()
    cuts: tuple[Cut, ...] = ()
    select_ms_by_stage: Mapping[str, float] = field(default_factory=dict)

    def with_time(self, stage: str, ms: float) -> Record:
        """The same record with more time spent on selecting at a stage, milliseconds."""
        by_stage = {**self.select_ms_by_stage, stage: self.select_ms_by_stage.get(stage, 0.0) + ms}
        return replace(self, select_ms=self.select_ms + ms, select_ms_by_stage=by_stage)

    @property
    def deep_layer(self) -> int | None:
        """The decoder layer of the last cut, if there was one."""
        return self.cuts[-1].layer if self.cuts else None

    @property
    def deep_indices(self) -> list[int] | None:
        """What is left from there on, ascending, within this input."""
        return self.cuts[-1].indices if self.cuts else None

    def mean_tokens(self, n_layers: int) -> float:
        """Visual tokens that a decoder layer holds of this input, a mean over the decoder's `n_layers`."""
        borders = [0, *(cut.layer for cut in self.cuts), n_layers]
        held = [self.n_after, *(len(cut.indices) for cut in self.cuts)]
        return sum(n * (b - a) for n, (a, b) in zip(held, itertools.pairwise(borders), strict=True)) / n_layers
