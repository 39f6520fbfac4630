"""DART: tokens that do not duplicate a few pivot tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import topk_select
from ..validate import whole
from .base import Policy
from .presets import LLAVA_7B, Preset
from .registration import register
from .types import DecoderView


@register("dart")
@dataclass
class DART(Policy):
    """Duplication-aware reduction of tokens at a decoder layer (DART, arXiv:2502.11494, section 3.3).

    1. Pivots: of the visual tokens of each input and of the text tokens, the `pivots` with the largest L1 norm of
       their keys in the layer below. Of the text, only what follows the row's first visual token is considered.
    2. One pivot after another takes its share of the budget: of the visual tokens not kept yet, those least similar
       to it (cosine similarity of hidden states after the model's final norm). Visual pivots come first, and larger
       norms before smaller ones.
    3. Visual pivots and the tokens taken stay. No attention is read.

    The paper's code keeps up to eight tokens more than it is asked for, and its pivots pick in the order of a Python
    set. Here the budget is met exactly and the order is fixed.

    Args:
        layer: index of the first decoder layer with fewer tokens, >= 1.
        pivots: how many pivots of each kind, >= 1.
    """

    layer: int = 2
    pivots: int = 4
    stage: ClassVar[Literal["decoder"]] = "decoder"
    paper: ClassVar[str] = "DART, EMNLP 2025, arXiv:2502.11494"
    keeps: ClassVar[str] = "tokens unlike a few pivots of large norm, from a decoder layer on"
    deviates: ClassVar[str] = (
        "meets the budget exactly (the release keeps up to 8 tokens more); larger norms pick first (the release: the "
        "order of a set)"
    )
    presets: ClassVar[Mapping[str, Preset]] = {
        f"paper-{n}": Preset(n + 4, table="main table, as the release runs it", model=LLAVA_7B, mean=mean)
        for n, mean in ((192, 219.8), (128, 159.8), (64, 99.8))
    }

    def __post_init__(self) -> None:
        whole(self, "layer", "pivots", least=1)

    def decoder_layers(self, n_layers: int, lowest: int) -> list[int]:
        return [self.layer]

    def decoder_select(self, view: DecoderView) -> list[Tensor] | None:
        if all(len(columns) == k for columns, k in zip(view.visual, view.n_keep, strict=True)):
            return None
        norms = view.keys.float().abs().sum(-1)
        unit = F.normalize(view.hidden().float(), dim=-1)
        text = view.text[norms[view.text].argsort(descending=True, stable=True)[: self.pivots]]
        return [
            self._keep(norms[columns], unit[columns], unit[text], k)
            for columns, k in zip(view.visual, view.n_keep, strict=True)
        ]

    def _keep(self, norms: Tensor, unit: Tensor, text: Tensor, n_keep: int) -> Tensor:
        """(N,) bool mask of one visual input, from (N,) norms, (N, D) unit vectors and (P, D) ones of text pivots."""
        visual_pivots = norms.argsort(descending=True, stable=True)[: min(self.pivots, n_keep)]
        kept = torch.zeros(len(unit), dtype=torch.bool, device=unit.device)
        kept[visual_pivots] = True
        pivots = torch.cat([unit[visual_pivots], text])
        missing = n_keep - len(visual_pivots)
        for i, pivot in enumerate(pivots):
            share = -(-missing // (len(pivots) - i))  # an equal share for this pivot and those after it, rounded up
            if share:
                dissimilarity = -(unit @ pivot)
                kept[topk_select(dissimilarity.masked_fill(kept, -torch.inf), share)] = True
                missing -= share
        return kept
