"""VTW: all visual tokens are dropped at one decoder layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..validate import real
from .base import Policy
from .presets import LLAVA_7B, Preset
from .registration import register
from .types import DecoderView


@register("vtw")
@dataclass
class VTW(Policy):
    """Visual tokens withdrawal (VTW, arXiv:2405.05803, section 3.3).

    1. Layers below the given depth get all visual tokens.
    2. Layers from it on get none. The paper argues that by then the text tokens hold the information that is needed.

    A keep ratio counts the mean over layers and so decides the depth: `keep=0.5` is half of the layers, rounded down.
    Where the depth is given, or `keep` is a number of tokens, the depth stays, and a mean below what its layers hold is
    refused. With `budget="final"`, `keep` has no effect. The paper finds the layer by the divergence of answers on a
    few examples (16 of 32 layers on LLaVA-1.5-7B).

    Args:
        depth: the first layer without visual tokens, as a share of the decoder's layers, in (0, 1). None: as a keep
            ratio says; one half without one, and with another policy before the decoder.
    """

    depth: float | None = None
    stage: ClassVar[Literal["decoder"]] = "decoder"
    paper: ClassVar[str] = "VTW, AAAI 2025, arXiv:2405.05803"
    keeps: ClassVar[str] = "all tokens up to a decoder layer, none from it on"
    deviates: ClassVar[str] = "the layer is given or follows from the budget, and is not calibrated"
    presets: ClassVar[Mapping[str, Preset]] = {
        name: Preset(None, {"depth": depth}, table=table, model=model, mean=mean)
        for name, depth, table, model, mean in (
            ("paper-7b", 0.5, "K=16", LLAVA_7B, 288),
            ("paper-13b", 0.5, "K=20", "LLaVA-1.5-13B, 40 layers, 576 tokens", 288),
            ("sqa", 15 / 32, "ScienceQA, K=15", LLAVA_7B, 270),
        )
    }
    adaptive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.depth is not None:
            real(self, "depth", above=0, below=1, what="a share of the layers")

    def decoder_layers(self, n_layers: int, lowest: int) -> list[int]:
        return [max(lowest, int((0.5 if self.depth is None else self.depth) * n_layers))]

    def decoder_counts(self, n: int, n_keep: float, n_layers: int, lowest: int) -> Sequence[float]:
        """None: the layers above the cut hold no visual token."""
        return [0]

    def with_mean(self, keep: float | int, n_layers: int, lowest: int) -> VTW:
        """The depth that holds the ratio `keep`, or less by a part of a layer."""
        if self.depth is not None or isinstance(keep, int):
            return self
        layer = min(n_layers - 1, max(lowest, int(keep * n_layers + 1e-9)))
        return replace(self, depth=(layer + 0.5) / n_layers)

    def decoder_select(self, view: DecoderView) -> list[Tensor] | None:
        return [torch.zeros(len(columns), dtype=torch.bool) for columns in view.visual]
