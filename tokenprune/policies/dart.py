"""DART: tokens that double a few pivots leave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import topk_select
from ..validate import whole
from .base import Policy, register
from .types import DecoderView


@register("dart")
@dataclass
class DART(Policy):
    """Duplication-aware reduction at a decoder layer (arXiv:2502.11494, section 3.3).

    Pivots are the visual and the text tokens with the largest L1 norm of their keys in the layer below.
    One pivot after another picks, of the visual tokens that are left, its share of those least like it
    (cosine of hidden states behind the final norm). Visual pivots and picks stay. No attention is read.

    The release keeps up to eight tokens more than it is asked for, and the order of a Python set decides
    which pivot picks first; here the budget is met, and larger norms pick first, visual pivots before
    text. Of the row's text, only what follows the first visual token is taken for pivots. Each image has
    its own visual pivots.

    Args:
        layer: the first that sees fewer tokens.
        pivots: of each kind.
    """

    layer: int = 2
    pivots: int = 4
    stage: ClassVar[Literal["decoder"]] = "decoder"
    paper: ClassVar[str] = "DART, EMNLP 2025, arXiv:2502.11494"
    keeps: ClassVar[str] = "tokens unlike a few loud pivots, from a decoder layer on"
    deviates: ClassVar[str] = "meets the budget exactly; larger norms pick first (the release: the order of a set)"

    def __post_init__(self) -> None:
        whole(self, "layer", "pivots", least=1)

    def deep_layers(self, n_layers: int, lowest: int) -> list[int]:
        return [self.layer]

    def deep_select(self, view: DecoderView) -> list[Tensor] | None:
        if all(len(places) == k for places, k in zip(view.visual, view.n_keep, strict=True)):
            return None
        norms = view.keys.float().abs().sum(-1)
        unit = F.normalize(view.hidden().float(), dim=-1)
        text = view.text[norms[view.text].argsort(descending=True, stable=True)[: self.pivots]]
        return [
            self._keep(norms[places], unit[places], unit[text], k)
            for places, k in zip(view.visual, view.n_keep, strict=True)
        ]

    def _keep(self, norms: Tensor, unit: Tensor, text: Tensor, n_keep: int) -> Tensor:
        """(N,) bool of one visual input."""
        own = norms.argsort(descending=True, stable=True)[: min(self.pivots, n_keep)]
        kept = torch.zeros(len(unit), dtype=torch.bool, device=unit.device)
        kept[own] = True
        pivots = torch.cat([unit[own], text])
        left = n_keep - len(own)
        for i, pivot in enumerate(pivots):
            share = -(-left // (len(pivots) - i))  # what is left, by the pivots that are left
            if share:
                unlike = -(unit @ pivot)
                kept[topk_select(unlike.masked_fill(kept, -torch.inf), share)] = True
                left -= share
        return kept
