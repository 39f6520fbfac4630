"""PyramidDrop: fewer visual tokens at every stage of the decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..schedule import Schedule
from .presets import LLAVA_7B, Preset
from .registration import register
from .scheduled import ScheduledPolicy
from .types import DecoderView


@register("pyramiddrop")
@dataclass
class PyramidDrop(ScheduledPolicy):
    """Drops in stages by attention of the last token (PyramidDrop, arXiv:2410.17247, section 3.2).

    At each cut of the schedule:

    1. Attention of the prompt's last token in the layer below, averaged over heads, ranks the tokens of each visual
       input.
    2. The best stay, as many as the schedule says. Ties go to the lowest index.

    By default the cuts are at a quarter, a half and three quarters of the layers, and each keeps the same ratio of
    the tokens before it. With a final keep ratio of an eighth that is one half at each cut, the paper's setting: 0.47
    of all tokens on average over the layers.

    The paper's code ranks by queries and keys of the layer above the cut, computed beforehand. Here attention of the
    layer below, which has run, is used.

    Args:
        schedule: at which depths of the decoder tokens are dropped, and how many stay.
    """

    schedule: Schedule = field(default_factory=lambda: Schedule((1 / 4, 1 / 2, 3 / 4)))
    paper: ClassVar[str] = "PyramidDrop, CVPR 2025, arXiv:2410.17247"
    keeps: ClassVar[str] = "fewer and fewer of what the last token attends to, at several decoder layers"
    deviates: ClassVar[str] = (
        "ranks by the layer below a cut (the release computes the one above beforehand); position ids stay (the "
        "release renumbers at every cut)"
    )
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset(
            0.125,
            {"schedule": Schedule((8 / 32, 16 / 32, 24 / 32), (288, 144, 72))},
            table="the release's default",
            model=LLAVA_7B,
            mean=270,
        )
    }

    def token_scores(self, view: DecoderView) -> Tensor:
        return view.received(torch.tensor([view.last]))
