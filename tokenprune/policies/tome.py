"""ToMe: similar tokens merge at every layer of the vision encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..validate import boolean
from .base import Policy
from .registration import register
from .types import TowerCut, TowerView


@register("tome")
@dataclass
class ToMe(Policy):
    """Token merging by bipartite soft matching (ToMe, arXiv:2210.09461, section 3).

    At every border between layers the same number of tokens is merged:

    1. Tokens at even indices are compared with those at odd ones, by cosine similarity of their keys (mean over heads)
       in the layer below. Each even token proposes to join the most similar odd one.
    2. The proposals with the largest similarity are accepted. The CLS token never merges.
    3. A merged token is the average of the patches that it stands for, at the position of the odd token. With
       proportional attention, attention counts it as often as it has patches.

    The paper merges between attention and MLP. Hooks act between layers, so here merging follows the MLP, by the keys
    of the layer that has run, and there is one border fewer than there are layers. Budgets for which more than half of
    the tokens have to merge at a border take several rounds there.

    Args:
        proportional_attention: whether the logarithm of a token's size is added to its attention scores. Not with
            FlashAttention.
    """

    proportional_attention: bool = True
    stage: ClassVar[Literal["encoder"]] = "encoder"
    paper: ClassVar[str] = "ToMe, ICLR 2023, arXiv:2210.09461"
    keeps: ClassVar[str] = "similar tokens merged at every layer of the vision tower"
    deviates: ClassVar[str] = (
        "merges after the MLP of a layer, not before it, at one border fewer; tokens in raster order (the release: "
        "even ones before odd ones)"
    )

    def __post_init__(self) -> None:
        boolean(self, "proportional_attention")

    @property
    def proportional(self) -> bool:
        return self.proportional_attention

    def encoder_select(self, view: TowerView) -> TowerCut | None:
        missing = -(-view.surplus // (view.n_cuts - view.cut))
        hidden, sizes, keys = view.hidden, view.sizes, view.key.float().mean(1)
        batch, m = hidden.shape[:2]
        keep = torch.arange(m, device=hidden.device).expand(batch, -1)
        while missing:
            m = keep.shape[1]
            n_merges = min(missing, (m + 1) // 2 - int(view.cls) if m > 2 else 1)
            kept, joining, target = self._match(keys, n_merges, view.cls)
            total = sizes.scatter_add(1, target, sizes.gather(1, joining))
            weights = [sizes.gather(1, joining) / total.gather(1, target), (sizes / total).gather(1, kept)]
            # Where the target of each is among those that stay.
            ranks = torch.arange(m - n_merges, device=kept.device).expand_as(kept)
            joined = kept.new_zeros(batch, m).scatter(1, kept, ranks).gather(1, target)
            hidden, keys = (_merged(x, kept, joining, joined, *weights) for x in (hidden, keys))
            sizes, keep = total.gather(1, kept), keep.gather(1, kept)
            missing -= n_merges
        return TowerCut(keep, hidden, sizes) if keep.shape[1] < view.hidden.shape[1] else None

    @staticmethod
    def _match(keys: Tensor, n_merges: int, cls: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Which tokens merge into which.

        Args:
            keys: (B, M, d).
            n_merges: how many tokens join another.
            cls: whether token 0 is a CLS token.

        Returns:
            (B, M - n_merges) int64, ascending indices of tokens that stay; (B, n_merges) int64, ascending, of those
            that join another, and of the ones that they join.
        """
        batch, m = keys.shape[:2]
        unit = F.normalize(keys, dim=-1)
        similarity = unit[:, ::2] @ unit[:, 1::2].mT
        if cls:
            similarity[:, 0] = -torch.inf
        best, partner = similarity.max(-1)
        order = best.argsort(dim=1, descending=True, stable=True)[:, :n_merges]
        joining = order.sort(1).values
        is_joining = torch.zeros(batch, m, dtype=torch.uint8, device=keys.device).scatter(1, 2 * joining, 1)
        kept = is_joining.argsort(dim=1, stable=True)[:, : m - n_merges]
        return kept, 2 * joining, 2 * partner.gather(1, joining) + 1


def _merged(x: Tensor, kept: Tensor, joining: Tensor, joined: Tensor, of_joining: Tensor, of_kept: Tensor) -> Tensor:
    """Tokens that stay, with those that join them added. No other tokens are copied.

    Args:
        x: (B, M, d).
        kept: (B, K) int64, tokens that stay.
        joining: (B, J) int64, tokens that join one of them.
        joined: (B, J) int64, which ones, as indices in `kept`.
        of_joining: (B, J) weights.
        of_kept: (B, K) weights.

    Returns:
        (B, K, d).
    """
    added = _rows(x, joining).mul_(of_joining[..., None].to(x.dtype))
    index = joined[..., None].expand_as(added)
    return _rows(x, kept).mul_(of_kept[..., None].to(x.dtype)).scatter_add_(1, index, added)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """(B, K, d) of (B, M, d), by (B, K) int64 indices."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))
