"""VTW: all visual tokens leave at one layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..validate import real
from .base import Policy, register
from .types import DecoderView


@register("vtw")
@dataclass
class VTW(Policy):
    """Visual tokens withdrawal (arXiv:2405.05803, section 3.3).

    Below a layer all visual tokens are there, from it on none: by then, the paper argues, text has taken
    over what it needs. `keep` plays no part. The paper finds the layer by the divergence of the answers on
    a few examples (16 of 32 on LLaVA-1.5-7B), the default here.

    Args:
        depth: the layer, as a share of the decoder's.
    """

    depth: float = 0.5
    stage: ClassVar[Literal["decoder"]] = "decoder"
    paper: ClassVar[str] = "VTW, AAAI 2025, arXiv:2405.05803"
    keeps: ClassVar[str] = "all tokens up to a decoder layer, none from it on"
    deviates: ClassVar[str] = "the layer is given, not calibrated"

    def __post_init__(self) -> None:
        real(self, "depth", above=0, below=1, what="a share of the layers")

    def deep_layers(self, n_layers: int, lowest: int) -> list[int]:
        return [max(lowest, int(self.depth * n_layers))]

    def deep_select(self, view: DecoderView) -> list[Tensor] | None:
        return [torch.zeros(len(places), dtype=torch.bool) for places in view.visual]
