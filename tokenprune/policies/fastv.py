"""FastV: the visual tokens that the last token attends to, after a few decoder layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..validate import whole
from .base import Policy
from .presets import LLAVA_7B, Preset
from .registration import register
from .types import DecoderView


@register("fastv")
@dataclass
class FastV(Policy):
    """One drop by attention of the last token at a decoder layer (FastV, arXiv:2403.06764, section 4.1).

    1. Layers 0 to `layer` - 1 get all visual tokens.
    2. Attention of the prompt's last token in layer `layer` - 1, averaged over heads, ranks the tokens of each visual
       input. The best stay; ties go to the lowest index.
    3. From `layer` on only these are computed, in prefill, and kept in the KV cache. Position ids do not change.

    Args:
        layer: K of the paper, index of the first decoder layer with fewer tokens, >= 1.
    """

    layer: int = 2
    stage: ClassVar[Literal["decoder"]] = "decoder"
    paper: ClassVar[str] = "FastV, ECCV 2024, arXiv:2403.06764"
    keeps: ClassVar[str] = "what the last token attends to after two decoder layers"
    presets: ClassVar[Mapping[str, Preset]] = {
        name: Preset(keep, {"layer": layer}, table=table, model=LLAVA_7B, mean=mean)
        for name, keep, layer, table, mean in (
            ("paper", 0.5, 2, "K=2, R=50 %", 306),
            ("k2-r75", 0.25, 2, "K=2, R=75 %", 171),
            ("k3-r50", 0.5, 3, "K=3, R=50 %", 315),
            ("mean-192", 166, 2, "an average of 192, as later papers compare", 191.6),
            ("mean-128", 98, 2, "an average of 128, as later papers compare", 127.9),
            ("mean-64", 30, 2, "an average of 64, as later papers compare", 64.1),
        )
    }

    def __post_init__(self) -> None:
        whole(self, "layer", least=1)

    def decoder_layers(self, n_layers: int, lowest: int) -> list[int]:
        return [self.layer]

    def decoder_select(self, view: DecoderView) -> list[Tensor] | None:
        if all(len(columns) == k for columns, k in zip(view.visual, view.n_keep, strict=True)):
            return None
        return view.best(view.received(torch.tensor([view.last])), view.n_keep)
