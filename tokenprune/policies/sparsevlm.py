"""SparseVLM: visual tokens that the telling words attend to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..schedule import Schedule
from .base import register
from .pyramiddrop import PyramidDrop
from .types import DecoderView


@register("sparsevlm")
@dataclass
class SparseVLM(PyramidDrop):
    """Text-guided sparsification (arXiv:2410.04417, section 3).

    Raters are the words to which visual tokens, by input embeddings, lean more than to the average word:
    softmax over words of the products, averaged over visual tokens. At each cut a token is ranked by the
    attention that raters pay it in the layer below, averaged over heads and raters. Cuts are at layers 2,
    6 and 15 of 32; numbers fall as in the release's setting for 128 tokens (303, 110, 36). The budget is
    what is left in the end: `keep=0.0625` of LLaVA-1.5 is that setting.

    Recycling of dropped tokens, which the authors' second version dropped as well, is not here, nor are
    its correction of logits and its choice of heads. Position ids are kept, as in that version.

    Args:
        schedule: where and how much.
    """

    schedule: Schedule = field(default_factory=lambda: Schedule((2 / 32, 6 / 32, 15 / 32), (303, 110, 36)))
    paper: ClassVar[str] = "SparseVLM, ICML 2025, arXiv:2410.04417"
    keeps: ClassVar[str] = "what the telling words attend to, at several decoder layers"
    deviates: ClassVar[str] = "no recycling, no correction of logits, all heads"

    def _scores(self, view: DecoderView) -> Tensor:
        return view.received(self.raters(view))

    @staticmethod
    def raters(view: DecoderView) -> Tensor:
        """(R,) places of the telling words; the last token where there is no text after the pictures."""
        if len(view.text) == 0:
            return torch.tensor([view.last])
        embeds = view.embeds().float()
        lean = (embeds[torch.cat(view.visual)] @ embeds[view.text].T).softmax(-1).mean(0)
        return view.text[lean >= lean.mean()]
