"""IPCV: patches leave inside the vision encoder and come back behind it, rebuilt from what became of others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..validate import real, whole
from .base import Policy
from .registration import register
from .types import Restoration, TowerCut, TowerView


@register("ipcv")
@dataclass
class IPCV(Policy):
    """Pruning inside the vision encoder that restores what was pruned (IPCV, arXiv:2512.18747).

    1. In front of one layer, those patches stay whose hidden state has moved most in the layer below, by L2 norm. The
       CLS token stays.
    2. Neighbour-guided reconstruction: a patch that left is rebuilt as its state when it left, plus the mean change
       since then of the `neighbours` patches that stayed and were nearest to it then, by L2 distance of their states.
    3. Attention stabilisation: in the first `stabilised` layers, attention is computed over all patches, those that
       left rebuilt, and the MLP over those that stayed. In layers above, only those that stayed are computed.
    4. Behind the last layer all patches that left are rebuilt. The raster is whole, so that pixel shuffles and
       projectors fit, and the language model gets all of its tokens.

    So a budget says how many patches go through the upper layers, and not what the language model gets. To have fewer
    tokens there, compose it: `apply_pruning(model, ["ipcv", "divprune"], keep=[0.35, 0.25])`.

    Args:
        depth: in front of which layer patches leave, as a share of the layers, in (0, 1). At least one layer is below
            and one above. The paper's code has layer 7 of 24, and a budget of 0.35.
        stabilised: how many layers from there on attend to rebuilt patches, >= 0; the paper's code has 3.
        neighbours: of how many patches the change is averaged, >= 1; the paper's code has 10.
    """

    depth: float = 0.3
    stabilised: int = 3
    neighbours: int = 10
    stage: ClassVar[Literal["encoder"]] = "encoder"
    paper: ClassVar[str] = "IPCV, arXiv:2512.18747"
    keeps: ClassVar[str] = "patches that changed most run through the upper layers of the vision tower; all come back"
    deviates: ClassVar[str] = (
        "neighbours are patches of the same picture (the code: of the whole batch, CLS tokens included)"
    )

    def __post_init__(self) -> None:
        real(self, "depth", above=0, below=1)
        whole(self, "stabilised", least=0)
        whole(self, "neighbours", least=1)

    @property
    def exact(self) -> bool:
        return False

    def restoration(self, n_layers: int) -> Restoration:
        layer = min(max(1, round(self.depth * n_layers)), n_layers - 1)
        return Restoration(layer, self.stabilised, self.neighbours)

    def encoder_select(self, view: TowerView) -> TowerCut:
        assert view.before is not None
        moved = (view.hidden - view.before).to(view.sizes.dtype).norm(dim=-1)
        moved = moved.masked_fill(view.sizes == 0, -1.0)  # patches that attention does not see leave first
        moved = moved[:, int(view.cls) :]
        order = moved.argsort(dim=1, descending=True, stable=True)[:, : view.n_keep]
        keep: Tensor = order.sort(dim=1).values
        if view.cls:
            keep = torch.cat([torch.zeros_like(keep[:, :1]), keep + 1], 1)
        return TowerCut(keep)
