"""The base class of policies that drop tokens at several decoder layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor

from ..schedule import Schedule
from ..validate import instance
from .base import Policy
from .types import DecoderView


@dataclasses.dataclass
class ScheduledPolicy(Policy):
    """Base of policies that drop tokens at several decoder layers by a `Schedule`.

    A subclass defines `token_scores`, or `decoder_select` or `decoder_select_many` with the help of `counts_at`. It
    gives `schedule` a default if it is registered.

    Args:
        schedule: at which depths of the decoder tokens are dropped, and how many stay.
    """

    schedule: Schedule
    stage: ClassVar[Literal["decoder"]] = "decoder"

    def __post_init__(self) -> None:
        instance(self, "schedule", Schedule, "Schedule((0.25, 0.5))")

    def decoder_layers(self, n_layers: int, lowest: int) -> list[int]:
        """The layers of the schedule's cuts."""
        return list(self.schedule.cuts(n_layers, lowest))

    def decoder_select(self, view: DecoderView) -> list[Tensor] | None:
        """The best-scored tokens of each visual input, as many as the schedule leaves. Ties go to the lowest index."""
        counts = self.counts_at(view)
        if all(len(columns) == k for columns, k in zip(view.visual, counts, strict=True)):
            return None
        return view.best(self.token_scores(view), counts)

    def decoder_counts(self, n: int, n_keep: float, n_layers: int, lowest: int) -> Sequence[float]:
        """What the schedule leaves after each cut."""
        schedule, cuts = self.schedule, self.schedule.cuts(n_layers, lowest).values()
        if type(schedule).kept is not Schedule.kept:  # a subclass with numbers of its own
            return [schedule.kept(cut, n, round(n_keep)) for cut in cuts]
        return [schedule.scaled(cut, n, n_keep) for cut in cuts]

    def counts_at(self, view: DecoderView) -> list[int]:
        """For each visual input, how many tokens stay at this layer: `view.counts`, else what the schedule leaves."""
        if view.counts is not None:
            return view.counts
        cut = self.schedule.cuts(view.n_layers, view.lowest)[view.layer]
        return [
            min(len(columns), self.schedule.kept(cut, n, k))
            for columns, n, k in zip(view.visual, view.entered, view.n_keep, strict=True)
        ]

    def token_scores(self, view: DecoderView) -> Tensor:
        """(M,) scores by column of the sequence; tokens with larger scores stay."""
        raise NotImplementedError
