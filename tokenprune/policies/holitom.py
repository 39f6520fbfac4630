"""HoliTom: what stands still over a window of frames is averaged; the rest stays by attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..budget import apportion_by_weight
from ..device import to_device
from ..ops import topk_select
from ..validate import real, whole
from .base import Policy
from .density import density_peaks
from .merging import group_sum, with_merged
from .presets import Preset, presets_of
from .registration import register
from .segments import frame_count
from .spacing import complement
from .types import EncoderSpec, Selection, VisualTokens


@register("holitom")
@dataclass
class HoliTom(Policy):
    """Holistic token merging of videos (HoliTom, arXiv:2505.21334), before the decoder.

    1. Windows: a place of the raster is static in a window of frames if each of its tokens there is more similar to
       the one in the frame before than `static` (cosine similarity). The video is cut into the windows for which the
       number of static places times (frames - 1), summed, is largest; by dynamic programming. Of equal ones, the last
       window is the longest.
    2. Temporal merging: the tokens of a static place become their average over the window, at the place in its first
       frame.
    3. The budget is split over what is left, in proportion: the static tokens of each window and the others of each
       frame.
    4. Of the others, the share 1 - `clustered` stays by attention in the vision encoder. The rest of their share, and
       all of the static tokens' share, are centres by density peaks (`neighbours`). A centre becomes `anchor` times
       itself plus 1 - `anchor` times the mean of the tokens that join it, those nearest to it (Euclidean distance).

    The paper's merging inside the decoder is not included; `fastv` in a list with this policy drops tokens there. An
    image is a video of one frame.

    Args:
        static: cosine similarity above which a token stands still, in [-1, 1].
        clustered: share of the others' budget for centres, in [0, 1]. The release's default is 0.
        neighbours: nearest tokens that the density is computed from, >= 1.
        anchor: weight of a centre in its average, in [0, 1].
    """

    static: float = 0.8
    clustered: float = 0.0
    neighbours: int = 7
    anchor: float = 0.6
    needs: ClassVar[frozenset[str]] = frozenset({"encoder_attention"})
    per_frame: ClassVar[bool] = False
    paper: ClassVar[str] = "HoliTom, NeurIPS 2025, arXiv:2505.21334"
    keeps: ClassVar[str] = "averages of what stands still over frames, and attended tokens of the rest"
    deviates: ClassVar[str] = (
        "meets the budget exactly (the release rounds by window); places that move most are not averaged where too few "
        "tokens would be left; nothing is merged inside the decoder"
    )
    presets: ClassVar[Mapping[str, Preset]] = presets_of(
        "paper", 0.15, table="the release's setting, without the decoder", model="LLaVA-OneVision-7B, 28 layers"
    )

    def __post_init__(self) -> None:
        real(self, "static", least=-1, most=1, what="a cosine")
        real(self, "clustered", least=0, most=1, what="a share of the budget")
        whole(self, "neighbours", least=1)
        real(self, "anchor", least=0, most=1)

    def encoder_spec(self) -> EncoderSpec:
        return EncoderSpec(layer="feature", rows="cls")

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        assert tokens.encoder_attention is not None
        t = frame_count(tokens)
        size = len(tokens) // t
        unit = F.normalize(tokens.features.float(), dim=-1).view(t, size, -1)
        similarity = (unit[1:] * unit[:-1]).sum(-1).cpu()  # the only wait: windows are found on the host
        windows = _windows(similarity > self.static)
        places = _still(similarity, self.static, windows, most=len(tokens) - n_keep)
        device = tokens.features.device
        groups = []  # indices of tokens, their features, and whether attention chooses some of them
        for (begin, end), still in zip(windows, places, strict=True):
            first = to_device(still + begin * size, device)
            frames = [tokens.features[to_device(still + i * size, device)] for i in range(begin, end)]
            groups.append((first, torch.stack(frames).float().mean(0), False))
            moving = to_device(complement(still, size), device)
            groups += [(moving + i * size, tokens.features[moving + i * size], True) for i in range(begin, end)]
        sizes = [len(indices) for indices, _, _ in groups]
        shares = apportion_by_weight(n_keep, sizes, sizes)
        kept, targets, merged = [indices[:0] for indices, _, _ in groups[:1]], [], []
        for (indices, features, by_attention), share in zip(groups, shares, strict=True):
            best = share - round(self.clustered * share) if by_attention else 0
            if best:
                chosen = topk_select(tokens.encoder_attention[indices].float(), best)
                kept.append(indices[chosen])
                rest = complement(chosen, len(indices))
                indices, features = indices[rest], features[rest]
            if share > best:
                centres, new = self._centres(features.float(), share - best)
                targets.append(indices[centres])
                merged.append(new)
        if not targets:
            return Selection(torch.cat(kept).sort().values)
        return with_merged(tokens, torch.cat(kept), torch.cat(targets), torch.cat(merged))

    def _centres(self, features: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """(K,) int64 centres of (M, D) tokens, and their (K, D) new features."""
        centres, distance = density_peaks(features, count, self.neighbours)
        joined = distance[:, centres].argmin(1).index_fill(0, centres, count)  # centres join none
        total, sizes = group_sum(features, joined, count)
        own = features[centres]
        mean = torch.where(sizes > 0, total / sizes.clamp(min=1), own)
        return centres, self.anchor * own + (1 - self.anchor) * mean


def _windows(is_still: Tensor) -> list[tuple[int, int]]:
    """First frame and end of each window.

    Args:
        is_still: (T - 1, P) bool on the host, whether the token at a place is like the one a frame earlier.
    """
    t = len(is_still) + 1
    best, begins = [0] * (t + 1), [0] * (t + 1)
    for end in range(1, t + 1):
        still = torch.ones(is_still.shape[1], dtype=torch.bool)
        gains = []
        for begin in range(end - 1, -1, -1):
            gains.append(best[begin] + int(still.sum()) * (end - 1 - begin))
            still = still & is_still[begin - 1] if begin else still
        best[end] = max(gains)
        begins[end] = end - 1 - max(i for i, gain in enumerate(gains) if gain == best[end])
    windows = []
    while t:
        windows.append((begins[t], t))
        t = begins[t]
    return windows[::-1]


def _still(similarity: Tensor, static: float, windows: Sequence[tuple[int, int]], most: int) -> list[Tensor]:
    """For each window, (S,) int64 places that are averaged over it, ascending, on the host.

    Args:
        similarity: (T - 1, P), of each token to the one a frame earlier.
        static: what it must exceed.
        windows: first frame and end of each.
        most: how many tokens may go by averaging. Where more would, the places of least similarity are not averaged.
    """
    found: list[tuple[float, int, int, int]] = []  # least similarity, window, place, tokens that go
    for i, (begin, end) in enumerate(windows):
        if end - begin > 1:
            least = similarity[begin : end - 1].amin(0)
            found += [(value, i, j, end - begin - 1) for j, value in enumerate(least.tolist()) if value > static]
    surplus, dropped = sum(each[3] for each in found) - most, 0
    found.sort()
    while surplus > 0:
        surplus -= found[dropped][3]
        dropped += 1
    chosen: list[list[int]] = [[] for _ in windows]
    for _, i, j, _ in found[dropped:]:
        chosen[i].append(j)
    return [torch.tensor(sorted(places), dtype=torch.int64) for places in chosen]
