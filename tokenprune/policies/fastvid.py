"""FastVID: segments of similar frames, their salient tokens, and averages around dense ones."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..budget import apportion_by_weight
from ..ops import topk_select
from ..validate import real, whole
from .base import Policy
from .merging import group_sum, with_merged
from .registration import register
from .spacing import complement
from .types import EncoderSpec, Selection, VisualTokens


@register("fastvid")
@dataclass
class FastVID(Policy):
    """Dynamic density pruning of videos (FastVID, arXiv:2503.11187, sections 3.2 to 3.4).

    1. Segments: the video is cut between the `segments` - 1 least similar pairs of neighbouring frames (cosine
       similarity of mean features), and between all neighbours less similar than `threshold`.
    2. Salient tokens: a share 1 - `merged` of the budget is split evenly over the frames. Each frame keeps the tokens
       with most attention in the vision encoder.
    3. Anchors: the rest of the budget is split over the segments by their number of frames. Anchors are picked in
       every `every`-th frame of a segment (in others only if those are full), by density peaks: the density from the
       `neighbours` nearest neighbours, times the distance to the nearest token of larger density.
    4. Merging: each token of the segment that is not kept joins its most similar anchor. An anchor becomes w times
       itself plus 1 - w times the mean of the tokens that joined it, with w = `anchor`, or the anchor's equal share
       of them all if that is larger. Merged tokens take the positions of their anchors.

    An image is a video of one frame.

    Args:
        segments: least number of segments (if the video has as many frames), >= 1.
        threshold: cosine similarity of neighbouring frames below which the video is cut, in [-1, 1].
        merged: share of the budget for anchors, in [0, 1].
        every: number of frames from one with anchors to the next, >= 1.
        neighbours: nearest neighbours that the density is computed from, >= 1.
        anchor: least weight of an anchor in its average, in [0, 1].
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
    keeps: ClassVar[str] = "salient tokens of every frame, and averages around dense ones in similar frames"
    deviates: ClassVar[str] = "splits the anchors by the length of the segments"

    def __post_init__(self) -> None:
        whole(self, "segments", "every", "neighbours", least=1)
        real(self, "threshold", least=-1, most=1, what="a cosine")
        real(self, "merged", least=0, most=1, what="a share of the budget")
        real(self, "anchor", least=0, most=1)

    def encoder_spec(self) -> EncoderSpec:
        return EncoderSpec(layer="feature", rows="cls")

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        attention = tokens.encoder_attention
        assert attention is not None
        t = tokens.grid[0] if tokens.grid is not None else 1
        size = len(tokens) // t
        n_anchors = int(self.merged * n_keep)
        quotas = apportion_by_weight(n_keep - n_anchors, [size] * t, [1.0] * t)
        salient = torch.cat(
            [
                topk_select(part, quota) + i * size
                for i, (part, quota) in enumerate(zip(attention.split(size), quotas, strict=True))
            ]
        )

        unit = F.normalize(tokens.features.float(), dim=-1)
        segments = self._segments(unit.view(t, size, -1).mean(1))
        rest = complement(salient, len(tokens)).split([size * (b - a) - sum(quotas[a:b]) for a, b in segments])
        counts = apportion_by_weight(n_anchors, [len(each) for each in rest], [float(b - a) for a, b in segments])
        anchors, merged = [], []
        for (start, _), members, count in zip(segments, rest, counts, strict=True):
            if count:
                chosen = self._anchors(unit[members], (members // size - start) % self.every == 0, count)
                anchors.append(members[chosen])
                merged.append(self._merge(tokens.features, unit, members, chosen))
        if not anchors:
            return Selection(salient)
        return with_merged(tokens, salient, torch.cat(anchors), torch.cat(merged))

    def _segments(self, frames: Tensor) -> list[tuple[int, int]]:
        """First frame and end of each segment, from (T, D) mean features."""
        t = len(frames)
        frames = F.normalize(frames, dim=-1)
        similarity = (frames[1:] * frames[:-1]).sum(-1)
        cut = similarity < self.threshold
        fewest = min(self.segments, t) - 1
        if fewest:
            cut[topk_select(-similarity, fewest)] = True
        borders = [0, *(i for i, is_cut in enumerate(cut.tolist(), 1) if is_cut), t]
        return list(itertools.pairwise(borders))

    def _anchors(self, unit: Tensor, preferred: Tensor, count: int) -> Tensor:
        """`count` indices of (M, D) tokens by density times distance to denser ones; (M,) bool preferred ones first."""
        if len(unit) == 1:
            return torch.zeros(1, dtype=torch.int64, device=unit.device)
        distance = (2 - 2 * unit @ unit.T).clamp(min=0)
        near = distance.fill_diagonal_(torch.inf).topk(min(self.neighbours, len(unit) - 1), largest=False).values
        density = torch.exp(-near.mean(1))
        index = torch.arange(len(unit), device=unit.device)
        denser = (density[None] > density[:, None]) | (density[None] == density[:, None]) & (index < index[:, None])
        to_denser = distance.masked_fill(~denser, torch.inf).amin(1)
        largest = distance.masked_fill(distance.isinf(), -torch.inf).max()
        score = density * to_denser.clamp(max=largest)
        return topk_select(score + preferred * (1 + score.max()), count)

    def _merge(self, features: Tensor, unit: Tensor, members: Tensor, chosen: Tensor) -> Tensor:
        """(A, D) anchors of a segment, averaged with its other members.

        Args:
            features: (N, D), of the video.
            unit: (N, D), the same, normalised.
            members: (M,) int64, the segment's tokens that are not salient.
            chosen: (A,) int64, which of the members are anchors.
        """
        anchors = members[chosen]
        rest = members[complement(chosen, len(members))]
        joined = (unit[rest] @ unit[anchors].T).argmax(1)
        total, sizes = group_sum(features[rest], joined, len(anchors))
        count = sizes.to(features)
        weight = (1 / (count + 1)).clamp(min=self.anchor)
        weight = torch.where(count > 0, weight, 1.0)
        return weight * features[anchors] + (1 - weight) * total / count.clamp(min=1)
