"""FlashVID: diverse attended tokens of every frame, and averages of the others along time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..budget import apportion_by_weight
from ..device import to_device, to_host
from ..ops import topk_select
from ..validate import real, whole
from .base import Policy
from .density import density_peaks
from .merging import group_sum, with_merged
from .presets import Preset, presets_of
from .registration import register
from .segments import cut_where, frame_count, similarities
from .spacing import complement
from .types import EncoderSpec, Selection, VisualTokens


@register("flashvid")
@dataclass
class FlashVID(Policy):
    """Diverse tokens, and trees of alike ones along time (FlashVID, ICLR 2026), before the decoder.

    1. Segments: the video is cut between the `segments` - 1 least similar pairs of neighbouring frames (cosine
       similarity of mean features), and between all neighbours less similar than `threshold`.
    2. Selected tokens: of a frame's equal share of the budget, the share `alpha`, rounded up, goes to a max-min
       selection in which the distance of a token (1 - cosine similarity) is multiplied by the attention that it
       receives in the vision encoder.
    3. Trees: each other token is linked to the most similar of the others in the frame before, within a segment, if
       their cosine similarity is above `linked`. A tree is the average of its tokens, at the place of its first one.
    4. The rest of a segment's budget is split over its frames by the trees that begin in them. In a frame, that many
       trees are centres, by density peaks (`neighbours`), and each other tree joins the nearest centre (Euclidean
       distance). A centre becomes the average of its trees and stands in its own place.

    The paper keeps a quarter more tokens than the budget, and drops tokens again at decoder layer 20 of 28:
    `apply_pruning(model, ["flashvid", FastV(layer=20)], keep=[0.125, 0.0375])` is its 10 %. An image is a video of one
    frame.

    Args:
        segments: least number of segments (if the video has as many frames), >= 1.
        threshold: cosine similarity of neighbouring frames below which the video is cut, in [-1, 1].
        alpha: share of the budget for selected tokens, in (0, 1].
        linked: cosine similarity above which tokens of neighbouring frames are linked, in [-1, 1].
        neighbours: nearest trees that the density is computed from, >= 1.
    """

    segments: int = 8
    threshold: float = 0.9
    alpha: float = 0.7
    linked: float = 0.8
    neighbours: int = 7
    needs: ClassVar[frozenset[str]] = frozenset({"encoder_attention"})
    per_frame: ClassVar[bool] = False
    paper: ClassVar[str] = "FlashVID, ICLR 2026"
    keeps: ClassVar[str] = "diverse attended tokens of every frame, and averages of the others along time"
    deviates: ClassVar[str] = (
        "meets the budget exactly: the weakest links are cut where too few trees would be left (the release keeps "
        "fewer tokens); the cut in the decoder is another policy's"
    )
    presets: ClassVar[Mapping[str, Preset]] = presets_of(
        "paper", 0.1, table="10 %, without the cut in the decoder", model="LLaVA-OneVision-7B, 28 layers"
    )

    def __post_init__(self) -> None:
        whole(self, "segments", "neighbours", least=1)
        real(self, "threshold", "linked", least=-1, most=1, what="a cosine")
        real(self, "alpha", above=0, most=1, what="a share of the budget")

    def encoder_spec(self) -> EncoderSpec:
        return EncoderSpec(layer="feature", rows="cls")

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        assert tokens.encoder_attention is not None
        t = frame_count(tokens)
        size = len(tokens) // t
        unit = F.normalize(tokens.features.float(), dim=-1).view(t, size, -1)
        budgets = apportion_by_weight(n_keep, [size] * t, [1.0] * t)
        counts = [math.ceil(self.alpha * budget) for budget in budgets]
        chosen = _diverse(unit, tokens.encoder_attention.float().view(t, size), counts)
        selected = torch.cat([each + i * size for i, each in enumerate(chosen)])
        if sum(counts) == n_keep:
            return Selection(selected.sort().values)
        others = torch.cat([complement(each, size) + i * size for i, each in enumerate(chosen)])
        sizes = [size - count for count in counts]
        left = [budget - count for budget, count in zip(budgets, counts, strict=True)]
        tree, first, centres = self._plan(unit, others, sizes, left)
        total, grown = group_sum(tokens.features[others].float(), tree, len(first))
        places, merged = self._clusters(others[first], total / grown, centres)
        return with_merged(tokens, selected, places, merged)

    def _plan(
        self, unit: Tensor, others: Tensor, sizes: list[int], left: list[int]
    ) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
        """The trees, worked out on the host after one wait for the device.

        Args:
            unit: (T, P, D), normalised tokens.
            others: (M,) int64, the tokens that are not selected, by frame.
            sizes: how many of them each frame has.
            left: how many tokens of each frame's budget are left for them.

        Returns:
            (M,) int64, the tree of each; (R,) int64, which of them each tree begins with; and for each frame, how many
            trees begin in it and how many of these are centres.
        """
        similarity, parent = _links(unit.flatten(0, 1)[others].split(sizes))
        frames, similarity, parent = to_host([similarities(unit.mean(1)), similarity, parent.to(similarity)])
        root, starts = torch.arange(len(others)), [0, *torch.tensor(sizes).cumsum(0).tolist()]
        centres: list[tuple[int, int]] = []
        for begin, end in cut_where(frames, self.segments, self.threshold):
            members = slice(starts[begin], starts[end])
            linked = similarity[members] > self.linked
            linked[: sizes[begin]] = False
            wanted = sum(left[begin:end])
            surplus = int(linked.sum()) - (len(linked) - wanted)
            if surplus > 0:  # too few trees
                strength = similarity[members].masked_fill(~linked, torch.inf)
                linked[topk_select(-strength, surplus)] = False
            for i in range(begin + 1, end):
                child = starts[i] + linked[starts[i] - starts[begin] : starts[i + 1] - starts[begin]].nonzero()[:, 0]
                root[child] = root[parent[child].long()]
            is_root = root[members] == torch.arange(len(root))[members]
            begun = [int(part.sum()) for part in is_root.split(sizes[begin:end])]
            centres += zip(begun, apportion_by_weight(wanted, begun, begun), strict=True)
        first, tree = root.unique(return_inverse=True)
        return to_device(tree, unit.device), to_device(first, unit.device), centres

    def _clusters(self, places: Tensor, trees: Tensor, centres: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Places and features of the centres, (K,) and (K, D).

        Args:
            places: (R,) int64, the token that each tree begins with, by frame.
            trees: (R, D), their averages.
            centres: for each frame, how many trees begin in it and how many of these are centres.
        """
        kept, merged, start = [], [], 0
        for begun, count in centres:
            part = trees[start : start + begun]
            if count:
                peaks, distance = density_peaks(part, count, self.neighbours)
                joined = distance[:, peaks].argmin(1)
                joined[peaks] = torch.arange(count, device=joined.device)
                total, sizes = group_sum(part, joined, count)
                kept.append(places[start : start + begun][peaks])
                merged.append(total / sizes)
            start += begun
        return torch.cat(kept), torch.cat(merged)


def _links(frames: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """For each token, the most similar token of the frame before.

    Args:
        frames: for each frame, (M_i, D) normalised tokens.

    Returns:
        (M,) similarities, minus infinity where there is none; and (M,) int64 indices among all M, 0 there.
    """
    similarity = [frames[0].new_full((len(frames[0]),), -torch.inf)]
    parent = [torch.zeros(len(frames[0]), dtype=torch.int64, device=frames[0].device)]
    start = 0
    for before, frame in itertools.pairwise(frames):
        if len(before) and len(frame):
            best = (frame @ before.T).max(1)
            similarity.append(best.values)
            parent.append(best.indices + start)
        else:
            similarity.append(frame.new_full((len(frame),), -torch.inf))
            parent.append(parent[0].new_zeros(len(frame)))
        start += len(before)
    return torch.cat(similarity), torch.cat(parent)


def _diverse(unit: Tensor, attention: Tensor, counts: list[int]) -> list[Tensor]:
    """For each frame, int64 indices, ascending: a greedy max-min selection of distance times attention.

    Args:
        unit: (T, P, D), normalised tokens.
        attention: (T, P).
        counts: how many of each frame.
    """
    far = 2.0  # no cosine distance is larger
    nearest = torch.stack([(1 - frame @ frame.T).fill_diagonal_(far).amin(1) for frame in unit])
    is_open, picks = torch.ones_like(attention, dtype=torch.bool), []
    for i in range(max(counts)):
        best = (nearest.clamp(min=0) * attention).masked_fill(~is_open, -1.0).argmax(1, keepdim=True)
        picks.append(best)
        is_open = is_open.scatter(1, best, False)
        chosen = unit.gather(1, best[..., None].expand(-1, -1, unit.shape[2]))
        distance = 1 - (unit @ chosen.transpose(1, 2))[..., 0]
        nearest = distance if i == 0 else nearest.minimum(distance)
    return [row[:count].sort().values for row, count in zip(torch.cat(picks, 1), counts, strict=True)]
