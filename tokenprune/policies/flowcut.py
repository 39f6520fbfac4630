"""FlowCut: tokens from which little information flows to the CLS token are dropped inside the vision encoder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..ops import attention_received
from ..validate import real, whole
from .base import Policy
from .registration import register
from .types import TowerCut, TowerView


@register("flowcut")
@dataclass
class FlowCut(Policy):
    """Pruning by information flow in the vision encoder (FlowCut, arXiv:2505.19536, section 4).

    At every `every`-th border between layers, counted so that the last border is one of them:

    1. A token's score is (a + s) times the L1 norm of its value. a is the attention that the CLS token pays to it,
       as a share of what it pays to all. s is the softmax over tokens of the similarity of its value with the value
       of the CLS token.
    2. The score is averaged with the one of the step before (`momentum`).
    3. The tokens with the smallest scores are dropped: surplus / sqrt(steps left) of them, at the last step all of
       the surplus.

    The paper drops more tokens where attention is concentrated (its entropy is small). Then images of a batch would
    have different lengths, and the tokens of one would depend on the others; here the numbers are fixed. Without a
    CLS token, the attention that tokens receive from all tokens and the mean value take its place.

    Args:
        every: number of borders from one step to the next, >= 1.
        momentum: weight of the score of the step before, in [0, 1).
    """

    every: int = 2
    momentum: float = 0.5
    stage: ClassVar[Literal["encoder"]] = "encoder"
    paper: ClassVar[str] = "FlowCut, NeurIPS 2025, arXiv:2505.19536"
    keeps: ClassVar[str] = "tokens that contribute much to CLS, layer by layer in the vision encoder"
    deviates: ClassVar[str] = "the number dropped at a step does not depend on the entropy of attention"

    def __post_init__(self) -> None:
        whole(self, "every", least=1)
        real(self, "momentum", least=0, below=1)

    def encoder_select(self, view: TowerView) -> TowerCut | None:
        borders_after = view.n_cuts - 1 - view.cut
        if borders_after % self.every or view.surplus <= 0:
            return None
        steps = borders_after // self.every + 1  # this one and those after it
        score = self._score(view)
        if (before := view.memory.get("score")) is not None:
            score = self.momentum * before + (1 - self.momentum) * score
        n_dropped = view.surplus if steps == 1 else min(view.surplus, int(view.surplus / math.sqrt(steps)))
        order = score.argsort(dim=1, descending=True, stable=True)
        keep = order[:, : score.shape[1] - n_dropped].sort(dim=1).values
        view.memory["score"] = score.gather(1, keep)
        if view.cls:
            keep = torch.cat([torch.zeros_like(keep[:, :1]), keep + 1], 1)
        return TowerCut(keep)

    @staticmethod
    def _score(view: TowerView) -> Tensor:
        """(B, M) scores of all tokens but the CLS token."""
        skip = int(view.cls)
        rows = torch.zeros(1, dtype=torch.int64, device=view.hidden.device) if view.cls else None
        attention = attention_received(view.query, view.key, rows=rows, scaling=view.scaling)[:, skip:]
        attention = attention / attention.sum(1, keepdim=True).clamp(min=1e-12)
        value = view.value.transpose(1, 2).flatten(2).to(attention.dtype)
        centre = value[:, :1] if view.cls else value.mean(1, keepdim=True)
        similarity = (value[:, skip:] @ centre.mT)[..., 0] / math.sqrt(value.shape[2])
        return (attention + similarity.softmax(1)) * value[:, skip:].abs().sum(-1)
