"""SparseVLM: visual tokens that the relevant words of the text attend to."""

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


@register("sparsevlm")
@dataclass
class SparseVLM(ScheduledPolicy):
    """Text-guided sparsification (SparseVLM, arXiv:2410.04417, section 3).

    1. Raters: for each visual token that enters the decoder, a softmax over the text tokens of the product of input
       embeddings; averaged over visual tokens, it is the relevance of a text token. Those with at least mean relevance
       are the raters. They are chosen once, and rate at every cut.
    2. At each cut of the schedule, attention of the raters in the layer below, averaged over heads and raters, ranks
       the tokens of each visual input. The best stay, as many as the schedule says. Ties go to the lowest index.

    As in the paper's code, layers 2, 6 and 15 of 32 run with all the tokens that they get, and tokens are missing from
    layers 3, 7 and 16 on. The numbers fall as in its first version for 128 tokens (303, 110, 36). In its second version
    they are 238, 108 and 60: `Schedule((3 / 32, 7 / 32, 16 / 32), (238, 108, 60))`. Position ids do not change, as in
    the second version.

    Not implemented: recycling of dropped tokens (which the second version dropped as well), and the second version's
    correction of logits and choice of 14 heads.

    Args:
        schedule: at which depths of the decoder tokens are dropped, and how many stay.
    """

    schedule: Schedule = field(default_factory=lambda: Schedule((3 / 32, 7 / 32, 16 / 32), (303, 110, 36)))
    paper: ClassVar[str] = "SparseVLM, ICML 2025, arXiv:2410.04417"
    keeps: ClassVar[str] = "what the relevant words attend to, at several decoder layers"
    deviates: ClassVar[str] = (
        "counts of the first version, position ids kept as in the second; no recycling (first version), no correction "
        "of logits and all heads in place of 14 (second version)"
    )
    presets: ClassVar[Mapping[str, Preset]] = {
        name: Preset(
            counts[-1],
            {"schedule": Schedule((3 / 32, 7 / 32, 16 / 32), counts)},
            table=f"Table 1, {version} version of the code",
            model=LLAVA_7B,
            mean=mean,
        )
        for name, version, counts, mean in (
            ("v1-192", "first", (300, 200, 110), 202.8),
            ("v1-128", "first", (303, 110, 36), 140.8),
            ("v1-64", "first", (66, 30, 17), 79.2),
            ("v2-192", "second", (300, 200, 118), 206.8),
            ("v2-128", "second", (238, 108, 60), 144.1),
            ("v2-64", "second", (66, 34, 20), 81.8),
        )
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self._memory: dict[str, Tensor] = {}  # for views that bring none

    def token_scores(self, view: DecoderView) -> Tensor:
        memory = self._memory if view.memory is None else view.memory
        raters = memory.get("raters")
        is_first = all(len(columns) == n for columns, n in zip(view.visual, view.entered, strict=True))
        if raters is None or is_first or len(raters) != len(view.text):
            raters = memory["raters"] = self._are_raters(view)
        return view.received(_columns(view, raters))

    @classmethod
    def raters(cls, view: DecoderView) -> Tensor:
        """(R,) int64 columns of the raters; the last token if no text follows the visual tokens."""
        return _columns(view, cls._are_raters(view))

    @staticmethod
    def _are_raters(view: DecoderView) -> Tensor:
        """(T,) bool, which of the text tokens are raters."""
        if len(view.text) == 0:
            return torch.zeros(0, dtype=torch.bool)
        embeds = view.embeds().float()
        relevance = (embeds[torch.cat(view.visual)] @ embeds[view.text].T).softmax(-1).mean(0)
        return relevance >= relevance.mean()


def _columns(view: DecoderView, raters: Tensor) -> Tensor:
    """(R,) int64 columns of raters, from (T,) bool among the text tokens; the last token if there is no text."""
    return view.text[raters] if len(raters) else torch.tensor([view.last])
