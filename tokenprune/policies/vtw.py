"""VTW: all visual tokens are dropped at one decoder layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..validate import real
from .base import Policy
from .registration import register
from .types import DecoderView


@register("vtw")
@dataclass
class VTW(Policy):
    """Visual tokens withdrawal (VTW, arXiv:2405.05803, section 3.3).

    1. Layers below the given depth get all visual tokens.
    2. Layers from it on get none. The paper argues that by then the text tokens hold the information that is needed.

    The budget (`keep`) has no effect. The paper finds the layer by the divergence of answers on a few examples (16 of
    32 layers on LLaVA-1.5-7B); here it is an option with that default.

    Args:
        depth: the first layer without visual tokens, as a share of the decoder's layers, in (0, 1).
    """

    depth: float = 0.5
    stage: ClassVar[Literal["decoder"]] = "decoder"
    paper: ClassVar[str] = "VTW, AAAI 2025, arXiv:2405.05803"
    keeps: ClassVar[str] = "all tokens up to a decoder layer, none from it on"
    deviates: ClassVar[str] = "the layer is given, not calibrated"

    def __post_init__(self) -> None:
        real(self, "depth", above=0, below=1, what="a share of the layers")

    def decoder_layers(self, n_layers: int, lowest: int) -> list[int]:
        return [max(lowest, int(self.depth * n_layers))]

    def decoder_select(self, view: DecoderView) -> list[Tensor] | None:
        return [torch.zeros(len(columns), dtype=torch.bool) for columns in view.visual]
