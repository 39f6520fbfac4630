"""FlowCut: tokens leave inside the vision tower where little flows from them to CLS."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..ops import attention_received
from ..validate import real, whole
from .base import Policy, register
from .types import TowerCut, TowerView


@register("flowcut")
@dataclass
class FlowCut(Policy):
    """Pruning by information flow in the vision tower (arXiv:2505.19536, section 4).

    At every `every`-th border between layers a token's score is the attention CLS pays it plus the softmax
    likeness of its value with that of CLS, both shares of one, times the L1 norm of its value; half of it is
    the score of before. The least scored leave, at each step the surplus over the root of the number of
    steps left, at the last all of it.

    The paper lets more leave where attention is concentrated (its entropy): pictures of a batch would then
    have different lengths, and a picture's tokens would depend on its neighbours; here they do not. Towers
    without CLS take the attention that tokens receive from all, and the mean value.

    Args:
        every: borders from one step to the next.
        momentum: weight of the score of before.
    """

    every: int = 2
    momentum: float = 0.5
    stage: ClassVar[Literal["encoder"]] = "encoder"
    paper: ClassVar[str] = "FlowCut, NeurIPS 2025, arXiv:2505.19536"
    keeps: ClassVar[str] = "tokens from which much flows to CLS, layer by layer in the vision tower"
    deviates: ClassVar[str] = "the number that leaves at a step does not depend on the entropy of attention"

    def __post_init__(self) -> None:
        whole(self, "every", least=1)
        real(self, "momentum", least=0, below=1)

    def tower_select(self, view: TowerView) -> TowerCut | None:
        steps = (view.n_cuts - 1 - view.cut) // self.every + 1  # this one and those that follow; the last border is one
        if (view.n_cuts - 1 - view.cut) % self.every or view.surplus <= 0:
            return None
        score = self._score(view)
        if (before := view.memory.get("score")) is not None:
            score = self.momentum * before + (1 - self.momentum) * score
        leaving = view.surplus if steps == 1 else min(view.surplus, int(view.surplus / math.sqrt(steps)))
        order = score.argsort(dim=1, descending=True, stable=True)
        keep = order[:, : score.shape[1] - leaving].sort(dim=1).values
        view.memory["score"] = score.gather(1, keep)
        if view.cls:
            keep = torch.cat([torch.zeros_like(keep[:, :1]), keep + 1], 1)
        return TowerCut(keep)

    @staticmethod
    def _score(view: TowerView) -> Tensor:
        """(B, M) of all tokens but CLS."""
        skip = int(view.cls)
        rows = torch.zeros(1, dtype=torch.int64, device=view.hidden.device) if view.cls else None
        paid = attention_received(view.query, view.key, rows=rows, scaling=view.scaling)[:, skip:]
        paid = paid / paid.sum(1, keepdim=True).clamp(min=1e-12)
        value = view.value.transpose(1, 2).flatten(2).to(paid.dtype)
        centre = value[:, :1] if view.cls else value.mean(1, keepdim=True)
        alike = (value[:, skip:] @ centre.mT)[..., 0] / math.sqrt(value.shape[2])
        return (paid + alike.softmax(1)) * value[:, skip:].abs().sum(-1)
