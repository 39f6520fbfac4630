"""FastVID: segments of similar frames, their salient tokens, and averages around dense ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..budget import apportion_by_weight
from ..ops import topk_select
from ..validate import real, whole
from .base import Policy
from .density import density_peaks
from .merging import group_sum, with_merged
from .presets import Preset, presets_of
from .registration import register
from .segments import frame_count, segments
from .spacing import complement
from .types import EncoderSpec, Selection, VisualTokens


@register("fastvid")
@dataclass
class FastVID(Policy):
    """Dynamic density pruning of videos (FastVID, arXiv:2503.11187, sections 3.2 to 3.4).

    1. Segments: the video is cut between the `segments` - 1 least similar pairs of neighbouring frames (cosine
       similarity of mean features), and between all neighbours less similar than `threshold`.
    2. Salient tokens: a frame's equal share of the budget is split in two. A share 1 - `merged` of it keeps the tokens
       with most attention in the vision encoder; what is left over when the budget is split goes there too.
    3. Anchors: the rest of the shares of a segment's frames is split evenly over its anchor frames, which are its last
       frame and every `every`-th before it. In an anchor frame they are picked among the tokens that are not salient
       by density peaks (Euclidean distance over the square root of the width): the density from the `neighbours`
       nearest neighbours, of which the token itself is one, times the distance to the nearest denser token.
    4. Merging: each token of the segment that is not salient joins its most similar anchor (cosine similarity) in every
       anchor frame. An anchor becomes w times itself plus 1 - w times the mean of the tokens that joined it, itself
       included, with w = `anchor`, or 1 / (1 + their number) if that is larger. Merged tokens take the positions of
       their anchors.

    Frames are compared by the mean of their normalised tokens; the paper's code takes the vision encoder's pooled
    features. Where the paper's code rounds down and keeps fewer tokens, here the budget is met exactly, and what anchor
    frames cannot take goes to other frames of the segment. An image is a video of one frame.

    Args:
        segments: least number of segments (if the video has as many frames), >= 1.
        threshold: cosine similarity of neighbouring frames below which the video is cut, in [-1, 1].
        merged: share of the budget for anchors, in [0, 1].
        every: number of frames from one anchor frame to the next, >= 1.
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
    deviates: ClassVar[str] = (
        "frames are compared by the mean of their tokens (the release: the encoder's pooled features); meets the "
        "budget exactly (the release rounds down by frame)"
    )
    presets: ClassVar[Mapping[str, Preset]] = presets_of(
        "paper", 0.25, 0.1, table="main table", model="LLaVA-OneVision-7B, 28 layers"
    )

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
        t = frame_count(tokens)
        size = len(tokens) // t
        by_frame = int(self.merged * (n_keep // t))  # anchors for each frame
        quotas = apportion_by_weight(n_keep - by_frame * t, [size] * t, [1.0] * t)
        salient = torch.cat(
            [
                topk_select(part, quota) + i * size
                for i, (part, quota) in enumerate(zip(attention.split(size), quotas, strict=True))
            ]
        )
        if by_frame == 0:
            return Selection(salient)

        unit = F.normalize(tokens.features.float(), dim=-1)
        rest = complement(salient, len(tokens)).split([size - quota for quota in quotas])  # by frame
        anchors, merged = [], []
        for start, stop in segments(unit.view(t, size, -1).mean(1), self.segments, self.threshold):
            members = torch.cat(rest[start:stop])
            counts = self._by_anchor_frame(by_frame * (stop - start), [len(each) for each in rest[start:stop]])
            for frame, count in zip(rest[start:stop], counts, strict=True):
                if count:
                    chosen = frame[density_peaks(tokens.features[frame], count, self.neighbours)[0]]
                    anchors.append(chosen)
                    merged.append(self._merge(tokens.features, unit, members, chosen))
        return with_merged(tokens, salient, torch.cat(anchors), torch.cat(merged))

    def _by_anchor_frame(self, count: int, sizes: list[int]) -> list[int]:
        """How many of a segment's `count` anchors each of its frames gets, from how many tokens each can take."""
        last = range(len(sizes) - 1, -1, -1)
        shares = [0] * len(sizes)
        # Anchor frames first, the segment's end before its start, then the other frames.
        for frames in (last[:: self.every], [i for i in last if i not in last[:: self.every]]):
            room = [sizes[i] for i in frames]
            given = min(count, sum(room))
            for i, share in zip(frames, apportion_by_weight(given, room, [1.0] * len(room)), strict=True):
                shares[i] = share
            count -= given
        return shares

    def _merge(self, features: Tensor, unit: Tensor, members: Tensor, anchors: Tensor) -> Tensor:
        """(A, D) anchors of a frame, averaged with the tokens of their segment that join them.

        Args:
            features: (N, D), of the video.
            unit: (N, D), the same, normalised.
            members: (M,) int64, the segment's tokens that are not salient.
            anchors: (A,) int64, which of them are the anchors.
        """
        joined = (unit[members] @ unit[anchors].T).argmax(1)
        total, sizes = group_sum(features[members], joined, len(anchors))
        count = sizes.to(features)
        weight = (1 / (count + 1)).clamp(min=self.anchor)
        return weight * features[anchors] + (1 - weight) * total / count.clamp(min=1)
