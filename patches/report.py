"""The report of a prefill: what became of each visual input."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
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
        n_layers: decoder layers of the model.
        select_ms_by_stage: `select_ms` by stage: `"pixels"`, `"encoder"`, `"vision"`, `"decoder"`; without stages that
            took no time. On a GPU the encoder stage does not wait for its kernels, so its time is that of launching
            them.
        kept_after: by stage before the vision stage (`"pixels"`, `"encoder"`) at which tokens left, what was kept
            there: ascending indices within this input, newline tokens left out.
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
    n_layers: int | None = None
    select_ms_by_stage: Mapping[str, float] = field(default_factory=dict)
    kept_after: Mapping[str, list[int]] = field(default_factory=dict)

    @property
    def tokens_per_layer(self) -> tuple[int, ...]:
        """Visual tokens that each decoder layer holds of this input.

        Raises:
            ValueError: if `n_layers` is None.
        """
        if self.n_layers is None:
            raise ValueError("how many decoder layers there are is unknown: this record has no n_layers")
        return self._held_by(self.n_layers)

    @property
    def mean(self) -> float:
        """Visual tokens that a decoder layer holds of this input, a mean over all layers: what its prefill costs.

        It equals `n_after` unless tokens left between decoder layers.

        Raises:
            ValueError: if tokens left there and `n_layers` is None.
        """
        if not self.cuts:
            return float(self.n_after)
        layers = self.tokens_per_layer
        return sum(layers) / len(layers)

    @property
    def n_by_stage(self) -> dict[str, int]:
        """How many tokens were left after each stage at which some could leave: `"pixels"`, `"encoder"`, `"vision"`
        (what entered the decoder) and `"decoder"` (what its last layer holds)."""
        early = {stage: len(kept) for stage, kept in self.kept_after.items()}
        return {**early, "vision": self.n_after, **({"decoder": self.n_last} if self.cuts else {})}

    @property
    def n_last(self) -> int:
        """Visual tokens that the last decoder layer holds of this input."""
        return len(self.cuts[-1].indices) if self.cuts else self.n_after

    def with_time(self, stage: str, ms: float) -> Record:
        """The same record with more time spent on selecting at a stage, milliseconds."""
        by_stage = {**self.select_ms_by_stage, stage: self.select_ms_by_stage.get(stage, 0.0) + ms}
        return replace(self, select_ms=self.select_ms + ms, select_ms_by_stage=by_stage)

    @property
    def select_ms_in_prefill(self) -> float:
        """`select_ms` without the stages before and inside the vision encoder, whose time is the encoder's."""
        return self.select_ms_by_stage.get("vision", 0.0) + self.select_ms_by_stage.get("decoder", 0.0)

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
        return sum(self._held_by(n_layers)) / n_layers

    def _held_by(self, n_layers: int) -> tuple[int, ...]:
        """Visual tokens of this input by decoder layer."""
        borders = [0, *(cut.layer for cut in self.cuts), n_layers]
        held = [self.n_after, *(len(cut.indices) for cut in self.cuts)]
        pairs = zip(held, itertools.pairwise(borders), strict=True)
        return tuple(n for n, (first, end) in pairs for _ in range(first, end))


_LONGEST = 20  # rows of a summary
_HEADS = ("sample", "input", "kind", "before")
_LATER_HEADS = ("after", "mean", "last", "select ms")


class PruningReport(list[Record]):
    """What the last prefill did: a list of records, one per visual input.

    Printed, it is the table of `summary`. Everything else is that of a list.
    """

    def summary(self) -> str:
        """A table as text, with a line for each visual input and their sum.

        Columns: row in the batch, index among the row's visual inputs, kind, visual tokens before all stages, those
        left before and inside the vision encoder (`pixels`, `encoder`) if any left there, those after the vision stage,
        their mean over the decoder layers and the number in the last one, and milliseconds of selecting.
        """
        if not self:
            return "no visual input: the pruned model has not run yet, or its last prompt had none"
        early = [stage for stage in ("pixels", "encoder") if any(stage in r.kept_after for r in self)]
        lines = [(str(r.sample), str(r.visual), r.kind, *_numbers([r], early)) for r in self[:_LONGEST]]
        if len(self) > 1:
            lines.append(("all", str(len(self)), "", *_numbers(self, early)))
        rows = [(*_HEADS, *early, *_LATER_HEADS), *lines]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        text = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        if len(self) > _LONGEST:
            text.insert(_LONGEST + 1, f"... and {len(self) - _LONGEST} more")
        return "\n".join(text)

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        before, after = sum(r.n_before for r in self), sum(r.n_after for r in self)
        inputs = f"{len(self)} visual input{'' if len(self) == 1 else 's'}"
        return f"<PruningReport of {inputs}, {after} of {before} tokens kept>"


def _numbers(records: Iterable[Record], early: Sequence[str]) -> tuple[str, ...]:
    """The numbers of a line of the summary: sums over the records; `early` are the stages with columns of their own."""
    records = list(records)
    known = all(r.n_layers is not None or not r.cuts for r in records)
    return (
        str(sum(r.n_before for r in records)),
        *(str(sum(len(r.kept_after.get(stage, range(r.n_before))) for r in records)) for stage in early),
        str(sum(r.n_after for r in records)),
        f"{sum(r.mean for r in records):.1f}" if known else "",
        str(sum(r.n_last for r in records)),
        f"{sum(r.select_ms for r in records):.2f}",
    )
