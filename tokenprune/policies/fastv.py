"""FastV: after a few decoder layers, keep the visual tokens that the last token attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..validate import whole
from .base import Policy, register
from .types import DecoderView


@register("fastv")
@dataclass
class FastV(Policy):
    """Rank by attention from the last token at a decoder layer, drop once (arXiv:2403.06764, section 4.1).

    Layers 0 to `layer` - 1 see all visual tokens; the attention of the last of them, averaged over
    heads, ranks each image's tokens; from `layer` on only the best are there, in prefill and in the KV
    cache. Position ids are kept. Ties go to the lowest index.

    Args:
        layer: K, the first layer that sees fewer tokens.
    """

    layer: int = 2
    stage: ClassVar[Literal["decoder"]] = "decoder"
    paper: ClassVar[str] = "FastV, ECCV 2024, arXiv:2403.06764"
    keeps: ClassVar[str] = "what the last token attends to after two decoder layers"

    def __post_init__(self) -> None:
        whole(self, "layer", least=1)

    def deep_layers(self, n_layers: int, lowest: int) -> list[int]:
        return [self.layer]

    def deep_select(self, view: DecoderView) -> list[Tensor] | None:
        if all(len(places) == k for places, k in zip(view.visual, view.n_keep, strict=True)):
            return None
        return view.best(view.received(torch.tensor([view.last])), view.n_keep)
