"""ToMe: like tokens merge at every layer of the vision tower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..validate import boolean
from .base import Policy, register
from .types import TowerCut, TowerView


@register("tome")
@dataclass
class ToMe(Policy):
    """Token merging by bipartite soft matching (arXiv:2210.09461, section 3).

    At every border between layers, the same number of tokens merge: every second token proposes to join
    the one in between whose key (mean over heads, cosine) is most like its own, and the best proposals are
    taken. A merged token is the average of the patches it stands for, at the place of the one that was
    joined. CLS never merges. With proportional attention, a token is as loud as its patches were.

    The paper merges between attention and MLP; hooks act between layers, so here merging follows the
    MLP, by the keys of the layer that has run. There is one border less than there are layers. Budgets that
    need more than half of the tokens to merge at a border take several rounds there.

    Args:
        proportional_attention: add the logarithm of its size to a token's attention scores; not with
            FlashAttention.
    """

    proportional_attention: bool = True
    stage: ClassVar[Literal["encoder"]] = "encoder"
    paper: ClassVar[str] = "ToMe, ICLR 2023, arXiv:2210.09461"
    keeps: ClassVar[str] = "like tokens merged at every layer of the vision tower"
    deviates: ClassVar[str] = "merges behind the MLP of a layer, not before it"

    def __post_init__(self) -> None:
        boolean(self, "proportional_attention")

    @property
    def proportional(self) -> bool:
        return self.proportional_attention

    def tower_select(self, view: TowerView) -> TowerCut | None:
        leaving = -(-view.surplus // (view.n_cuts - view.cut))
        hidden, sizes, keys = view.hidden, view.sizes, view.key.float().mean(1)
        batch, m = hidden.shape[:2]
        keep = torch.arange(m, device=hidden.device).expand(batch, -1)
        while leaving:
            m = keep.shape[1]
            now = min(leaving, (m + 1) // 2 - int(view.cls) if m > 2 else 1)
            stays, joined = self._match(keys, now, view.cls)
            sizes, old = torch.zeros_like(sizes).scatter_add(1, joined, sizes), sizes
            weight = (old / sizes.gather(1, joined))[..., None]
            merge = lambda x, w=weight, j=joined: torch.zeros_like(x).scatter_add(
                1, j[..., None].expand_as(x), x * w.to(x.dtype)
            )
            hidden, keys = merge(hidden), merge(keys)
            take = lambda x, s=stays: x.gather(1, s[..., None].expand(-1, -1, x.shape[2]))
            hidden, keys, sizes, keep = take(hidden), take(keys), sizes.gather(1, stays), keep.gather(1, stays)
            leaving -= now
        return TowerCut(keep, hidden, sizes) if keep.shape[1] < view.hidden.shape[1] else None

    @staticmethod
    def _match(keys: Tensor, leaving: int, cls: bool) -> tuple[Tensor, Tensor]:
        """Places (B, M - leaving) that stay, ascending, and where every token goes (B, M)."""
        batch, m = keys.shape[:2]
        unit = F.normalize(keys, dim=-1)
        likeness = unit[:, ::2] @ unit[:, 1::2].mT
        if cls:
            likeness[:, 0] = -torch.inf
        best, partner = likeness.max(-1)
        order = best.argsort(dim=1, descending=True, stable=True)[:, :leaving]
        place = torch.arange(m, device=keys.device).expand(batch, -1)
        joined = place.scatter(1, 2 * order, 2 * partner.gather(1, order) + 1)
        gone = torch.zeros_like(place).scatter(1, 2 * order, 1)
        return gone.argsort(dim=1, stable=True)[:, : m - leaving], joined
