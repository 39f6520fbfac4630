"""FastVID: stretches of like frames, their salient tokens, and averages of what is dense around anchors."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import topk_select
from ..validate import real, whole
from .base import Policy, register
from .merging import summed, with_merged
from .quota import shares
from .spacing import others
from .types import EncoderSpec, Selection, VisualTokens


@register("fastvid")
@dataclass
class FastVID(Policy):
    """Dynamic density pruning of videos (arXiv:2503.11187, sections 3.2 to 3.4).

    A video is cut into segments between the `segments` - 1 least similar neighbouring frames (mean
    features) and wherever neighbours are less alike than `threshold`. Every frame keeps the tokens with
    most attention from the vision encoder, a share 1 - `merged` of its budget. The rest of a segment's
    budget goes to anchors in every `every`-th of its frames, by density peaks (k-nearest neighbours): dense
    tokens far from denser ones. Each token of the segment that is not kept joins the most similar anchor; an
    anchor becomes `anchor` times itself plus the rest of one times their mean (not less than an equal
    share of itself). Merged tokens stand at their anchors' places. An image is one frame.

    Args:
        segments: at least, where the video has as many frames.
        threshold: similarity of neighbouring frames below which there is a cut.
        merged: share of the budget for anchors.
        every: frames from one with anchors to the next.
        neighbours: of the density.
        anchor: least weight of an anchor in its average.
    """

    segments: int = 8
    threshold: float = 0.9
    merged: float = 0.4
    every: int = 4
    neighbours: int = 4
    anchor: float = 0.6
    needs: ClassVar[frozenset[str]] = frozenset({"encoder_attention"})
    per_frame: ClassVar[bool] = False
    paper: ClassVar[str] = "FastVID, NeurIPS 2025, arXiv:2503.11187"
    keeps: ClassVar[str] = "salient tokens of every frame, and averages around dense ones in like frames"
    deviates: ClassVar[str] = "shares the anchors out by the length of the segments"

    def __post_init__(self) -> None:
        whole(self, "segments", "every", "neighbours", least=1)
        real(self, "threshold", least=-1, most=1, what="a cosine")
        real(self, "merged", least=0, most=1, what="a share of the budget")
        real(self, "anchor", least=0, most=1)

    def encoder(self) -> EncoderSpec:
        return EncoderSpec(layer="feature", rows="cls")

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        attention = tokens.encoder_attention
        assert attention is not None
        t = tokens.grid[0] if tokens.grid is not None else 1
        size = len(tokens) // t
        n_anchors = int(self.merged * n_keep)
        quotas = shares(torch.ones(t), [size] * t, n_keep - n_anchors)
        salient = torch.cat(
            [
                topk_select(part, quota) + i * size
                for i, (part, quota) in enumerate(zip(attention.split(size), quotas, strict=True))
            ]
        )

        unit = F.normalize(tokens.features.float(), dim=-1)
        segments = self._segments(unit.view(t, size, -1).mean(1))
        free = others(salient, len(tokens)).split([size * (b - a) - sum(quotas[a:b]) for a, b in segments])
        # Anchors stand in some frames of a segment, in others only if those are full.
        counts = shares(torch.tensor([float(b - a) for a, b in segments]), [len(f) for f in free], n_anchors)
        anchors, merged = [], []
        for (start, _), places, count in zip(segments, free, counts, strict=True):
            if count:
                chosen = self._anchors(unit[places], (places // size - start) % self.every == 0, count)
                anchors.append(places[chosen])
                merged.append(self._merge(tokens.features, unit, places, chosen))
        if not anchors:
            return Selection(salient)
        return with_merged(tokens, salient, torch.cat(anchors), torch.cat(merged))

    def _segments(self, frames: Tensor) -> list[tuple[int, int]]:
        """First frame and end of each segment, from (T, D) mean features."""
        t = len(frames)
        frames = F.normalize(frames, dim=-1)
        alike = (frames[1:] * frames[:-1]).sum(-1)
        cut = alike < self.threshold
        fewest = min(self.segments, t) - 1
        if fewest:
            cut[topk_select(-alike, fewest)] = True
        borders = [0, *(i for i, here in enumerate(cut.tolist(), 1) if here), t]
        return list(itertools.pairwise(borders))

    def _anchors(self, unit: Tensor, here: Tensor, count: int) -> Tensor:
        """`count` of (M, D) tokens, `here` (M,) bool before others, by density times distance to denser ones."""
        if len(unit) == 1:
            return torch.zeros(1, dtype=torch.int64, device=unit.device)
        distance = (2 - 2 * unit @ unit.T).clamp(min=0)
        near = distance.fill_diagonal_(torch.inf).topk(min(self.neighbours, len(unit) - 1), largest=False).values
        density = torch.exp(-near.mean(1))
        place = torch.arange(len(unit), device=unit.device)
        denser = (density[None] > density[:, None]) | (density[None] == density[:, None]) & (place < place[:, None])
        apart = distance.masked_fill(~denser, torch.inf).amin(1)
        largest = distance.masked_fill(distance.isinf(), -torch.inf).max()
        score = density * apart.clamp(max=largest)
        return topk_select(score + here * (1 + score.max()), count)

    def _merge(self, features: Tensor, unit: Tensor, places: Tensor, chosen: Tensor) -> Tensor:
        anchors = places[chosen]
        rest = places[others(chosen, len(places))]
        joined = (unit[rest] @ unit[anchors].T).argmax(1)
        total, members = summed(features[rest], joined, len(anchors))
        count = members.to(features)
        weight = (1 / (count + 1)).clamp(min=self.anchor)
        weight = torch.where(count > 0, weight, 1.0)
        return weight * features[anchors] + (1 - weight) * total / count.clamp(min=1)
