"""SparseVLM: visual tokens that the relevant words of the text attend to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..schedule import Schedule
from .base import ScheduledPolicy
from .registration import register
from .types import DecoderView


@register("sparsevlm")
@dataclass
class SparseVLM(ScheduledPolicy):
    """Text-guided sparsification (SparseVLM, arXiv:2410.04417, section 3).

    At each cut of the schedule:

    1. Raters: for each visual token, a softmax over the text tokens of the product of input embeddings; averaged over
       visual tokens, it is the relevance of a text token. Those with at least mean relevance are the raters.
    2. Attention of the raters in the layer below, averaged over heads and raters, ranks the tokens of each visual
       input. The best stay, as many as the schedule says. Ties go to the lowest index.

    Cuts are at layers 2, 6 and 15 of 32, and the numbers fall as in the paper's code for 128 tokens (303, 110, 36).
    The budget is what is left after the last cut: `keep=0.0625` on LLaVA-1.5 is that setting. Position ids do not
    change, as in the paper's second version.

    Not implemented: recycling of dropped tokens (which the second version dropped as well), the correction of logits
    and the choice of heads.

    Args:
        schedule: at which depths of the decoder tokens are dropped, and how many stay.
    """

    schedule: Schedule = field(default_factory=lambda: Schedule((3 / 32, 7 / 32, 16 / 32), (303, 110, 36)))
    paper: ClassVar[str] = "SparseVLM, ICML 2025, arXiv:2410.04417"
    keeps: ClassVar[str] = "what the relevant words attend to, at several decoder layers"
    deviates: ClassVar[str] = "no recycling, no correction of logits, all heads"

    def token_scores(self, view: DecoderView) -> Tensor:
        return view.received(self.raters(view))

    @staticmethod
    def raters(view: DecoderView) -> Tensor:
        """(R,) int64 columns of the raters; the last token if no text follows the visual tokens."""
        if len(view.text) == 0:
            return torch.tensor([view.last])
        embeds = view.embeds().float()
        relevance = (embeds[torch.cat(view.visual)] @ embeds[view.text].T).softmax(-1).mean(0)
        return view.text[relevance >= relevance.mean()]
