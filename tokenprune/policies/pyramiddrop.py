"""PyramidDrop: fewer visual tokens at every stage of the decoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..schedule import Schedule
from ..validate import instance
from .base import Policy, register
from .types import DecoderView


@register("pyramiddrop")
@dataclass
class PyramidDrop(Policy):
    """Drop in stages by attention from the last token (arXiv:2410.17247, section 3.2).

    At each cut of the schedule, attention of the last token in the layer below (mean over heads) ranks
    each image's tokens. By default at a quarter, a half and three quarters of the layers, each leaving
    the same share: one half with a final budget of an eighth, the paper's setting, which is 0.47 of all
    tokens on average over the layers. The release ranks by queries and keys of the layer above, computed
    beforehand; here the layer that has run is listened to.

    Args:
        schedule: where and how much.
    """

    schedule: Schedule = field(default_factory=lambda: Schedule((1 / 4, 1 / 2, 3 / 4)))
    stage: ClassVar[Literal["decoder"]] = "decoder"
    paper: ClassVar[str] = "PyramidDrop, CVPR 2025, arXiv:2410.17247"
    keeps: ClassVar[str] = "fewer and fewer of what the last token attends to, at several decoder layers"
    deviates: ClassVar[str] = "listens to the layer below a cut (the release computes the one above beforehand)"

    def __post_init__(self) -> None:
        instance(self, "schedule", Schedule, "Schedule((0.25, 0.5))")

    def deep_layers(self, n_layers: int, lowest: int) -> list[int]:
        return list(self.schedule.cuts(n_layers, lowest))

    def deep_select(self, view: DecoderView) -> list[Tensor] | None:
        counts = self._counts(view)
        if all(len(places) == k for places, k in zip(view.visual, counts, strict=True)):
            return None
        return view.best(self._scores(view), counts)

    def _counts(self, view: DecoderView) -> list[int]:
        """Per visual input, how many tokens the schedule leaves at this layer."""
        cut = self.schedule.cuts(view.n_layers, view.lowest)[view.layer]
        return [
            min(len(places), self.schedule.left(cut, n, k))
            for places, n, k in zip(view.visual, view.entered, view.n_keep, strict=True)
        ]

    def _scores(self, view: DecoderView) -> Tensor:
        """(M,) by place, larger for what stays longer."""
        return view.received(torch.tensor([view.last]))
