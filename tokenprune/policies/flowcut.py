"""FlowCut: tokens from which little information flows to the CLS token are dropped inside the vision encoder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..device import to_device
from ..ops import attention_received
from ..validate import boolean, real, whole
from .base import Policy
from .presets import LLAVA_7B, Preset, presets_of
from .registration import register
from .types import TowerCut, TowerView


@register("flowcut")
@dataclass
class FlowCut(Policy):
    """Pruning by information flow in the vision encoder (FlowCut, arXiv:2505.19536, section 4).

    1. At every border between layers a token is scored with (a + s) times the L1 norm of its value, averaged over
       heads. a is the attention that the CLS token pays to it, as a share of what it pays to all patches. s is the
       softmax over tokens of the product of its value with the CLS token's, averaged over heads, also as a share.
    2. The score is averaged with that of the border before (`momentum`).
    3. At every `every`-th border, counted so that the last border is one of them, the tokens with the smallest scores
       are dropped. Their number is surplus / sqrt(layers left) * (1 - h^2), where h is the entropy of the shares a
       over its largest possible value; at the last border it is all of the surplus. So more tokens leave early where
       attention is concentrated.

    Step 3 leaves a different number of tokens of each picture of a batch. The shorter ones are padded with tokens that
    attention does not see, so that no picture depends on the others. This takes a mask, which FlashAttention does not
    accept; it runs with one picture at a time, or with `by_entropy=False`.

    Without a CLS token, the attention that tokens receive from all tokens and the mean value take its place. Where a
    token is made of several patches, its score and its share a are the sums over its patches. In towers with windows
    the borders are those above layers that attend to the whole picture. Frames of a video are pictures.

    For pictures in tiles the paper's code leaves twice the budget in the vision encoder and drops the rest in the
    decoder; here the budget is met in the vision encoder.

    Args:
        every: number of borders from one at which tokens are dropped to the next, >= 1.
        momentum: weight of the score of the border before, in [0, 1).
        by_entropy: whether the number that is dropped depends on the entropy of attention. If not, h is 0.
    """

    every: int = 2
    momentum: float = 0.5
    by_entropy: bool = True
    stage: ClassVar[Literal["encoder"]] = "encoder"
    chooses_groups: ClassVar[bool] = True
    paper: ClassVar[str] = "FlowCut, NeurIPS 2025, arXiv:2505.19536"
    keeps: ClassVar[str] = "tokens that contribute much to CLS, layer by layer in the vision encoder"
    deviates: ClassVar[str] = "pictures in tiles meet their budget in the vision encoder, not at a decoder layer"
    presets: ClassVar[Mapping[str, Preset]] = presets_of("paper", 192, 128, 64, table="Table 1", model=LLAVA_7B)

    def __post_init__(self) -> None:
        whole(self, "every", least=1)
        real(self, "momentum", least=0, below=1)
        boolean(self, "by_entropy")

    def encoder_select(self, view: TowerView) -> TowerCut | None:
        if view.surplus <= 0:
            return None
        batch, m = len(view.hidden), view.hidden.shape[1] // view.group - int(view.cls)
        counts = view.memory.get("counts", [m] * batch)  # without the tokens that pad
        is_real = view.sizes > 0 if min(counts) < m else None
        flow, score = self._scores(view, is_real)
        if (before := view.memory.get("score")) is not None:
            score = self.momentum * before + (1 - self.momentum) * score
        view.memory["score"] = score
        layers_left = view.n_cuts - 1 - view.cut
        if layers_left % self.every:
            return None
        left = [view.n_keep] * batch if layers_left == 0 else self._left(flow, counts, view.n_keep, layers_left)
        return None if left == counts else self._cut(view, score, is_real, left)

    def _left(self, flow: Tensor, counts: list[int], n_keep: int, layers_left: int) -> list[int]:
        """How many tokens of each picture are left after a border, from (B, M) shares of attention."""
        entropy = torch.special.entr(flow).sum(1).tolist() if self.by_entropy else [0.0] * len(counts)
        left = []
        for n, bits in zip(counts, entropy, strict=True):
            surplus = n - n_keep
            spread = bits / math.log(n) if n > 1 and math.isfinite(bits) else 0.0
            n_dropped = round(surplus / math.sqrt(layers_left) * (1 - spread**2))
            left.append(n - min(max(n_dropped, 0), surplus))
        return left

    @staticmethod
    def _cut(view: TowerView, score: Tensor, is_real: Tensor | None, left: list[int]) -> TowerCut:
        """What stays: `left` tokens of each picture with the largest of (B, M) scores, and as many more as pad it."""
        longest = max(left)
        rank = score if is_real is None else score.masked_fill(~is_real[:, int(view.cls) :], -torch.inf)
        order = rank.argsort(dim=1, descending=True, stable=True)[:, :longest]
        keep, place = order.sort(dim=1)
        view.memory.update(score=score.gather(1, keep), counts=left)
        sizes = None
        if min(left) < longest:
            sizes = (place < to_device(torch.tensor(left), place.device)[:, None]).to(view.sizes.dtype)
        if view.cls:
            keep = torch.cat([torch.zeros_like(keep[:, :1]), keep + 1], 1)
            sizes = None if sizes is None else torch.cat([torch.ones_like(sizes[:, :1]), sizes], 1)
        return TowerCut(keep, sizes=sizes, has_pads=sizes is not None)

    @staticmethod
    def _scores(view: TowerView, is_real: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, M) shares of attention and (B, M) scores, of all tokens but the CLS token.

        Args:
            view: of the policy.
            is_real: (B, M) bool, False at pads; None: there are none.
        """
        skip = int(view.cls)
        rows = torch.zeros(1, dtype=torch.int64, device=view.hidden.device) if view.cls else is_real
        flow = attention_received(view.query, view.key, rows=rows, mask=is_real, scaling=view.scaling)[:, skip:]
        flow = flow / flow.sum(1, keepdim=True).clamp(min=1e-12)
        value = view.value.to(flow.dtype)
        if view.cls:
            centre = value[:, :, :1]
        elif is_real is None:
            centre = value.mean(2, keepdim=True)
        else:
            weight = is_real.to(value.dtype)[:, None, :, None]
            centre = (value * weight).sum(2, keepdim=True) / weight.sum(2, keepdim=True)
        similarity = (value @ centre.mT)[..., 0]  # (B, H, M)
        if is_real is not None:
            similarity = similarity.masked_fill(~is_real[:, None], -torch.inf)
        similarity = similarity.softmax(-1).mean(1)[:, skip:]
        similarity = similarity / similarity.sum(1, keepdim=True).clamp(min=1e-12)
        score = (flow + similarity) * value.mean(1)[:, skip:].abs().sum(-1)
        if view.group > 1:
            flow, score = (each.unflatten(1, (-1, view.group)).sum(2) for each in (flow, score))
        return flow, score
