"""VidCom2: tokens unlike the rest of their frame and of the video, more from frames that stand out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..budget import apportion_by_weight
from ..ops import topk_select
from ..validate import real
from .base import Policy
from .presets import Preset, presets_of
from .registration import register
from .segments import frame_count
from .types import Selection, VisualTokens

_WIDTHS = tuple(2.0**i for i in range(-3, 2))  # of the Gaussians


@register("vidcom2")
@dataclass
class VidCom2(Policy):
    """Video compression commander (VidCom2, arXiv:2505.14454, section 3).

    1. Tokens are reduced to the share `channels` of the channels with the least variance, and normalised.
    2. How common a token is in the video, and in its frame, is the sum of Gaussians of five widths of its distance to
       the mean of the video, and of the frame.
    3. Each frame gets an equal share of the budget, plus what a softmax over frames of minus their mean commonness in
       the video gives above an equal share.
    4. In each frame the tokens stay that are least common in video and frame together.

    The paper's code rounds the number of each frame by itself, so that their sum can miss the budget. Here the shares
    are rounded by largest remainder and the budget is met exactly. An image is a video of one frame.

    Args:
        sharpness: temperature of the softmax over frames, > 0.
        channels: share of the channels that are compared, in (0, 1].
    """

    sharpness: float = 0.01
    channels: float = 0.5
    per_frame: ClassVar[bool] = False
    paper: ClassVar[str] = "VidCom2, EMNLP 2025, arXiv:2505.14454"
    keeps: ClassVar[str] = "tokens unlike the rest of frame and video, more from frames that stand out"
    deviates: ClassVar[str] = "meets the budget exactly (the release rounds frame by frame and can miss it)"
    presets: ClassVar[Mapping[str, Preset]] = presets_of(
        "paper", 0.25, table="main table", model="LLaVA-OneVision-7B, 28 layers"
    )

    def __post_init__(self) -> None:
        real(self, "sharpness", above=0)
        real(self, "channels", above=0, most=1, what="a share of the channels")

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        t = frame_count(tokens)
        features = tokens.features.float()
        by_variance = features.var(0, correction=0).argsort(stable=True)
        features = F.normalize(features[:, by_variance[: max(1, int(self.channels * len(by_variance)))]], dim=-1)
        frames = features.view(t, -1, features.shape[-1])
        in_video = self._commonness(frames, frames.mean((0, 1), keepdim=True))
        in_frame = self._commonness(frames, frames.mean(1, keepdim=True))
        weight = (-in_video.mean(1) / self.sharpness).softmax(0)
        sizes = [frames.shape[1]] * t
        quotas = apportion_by_weight(n_keep, sizes, (1 + weight - 1 / t).tolist())
        picks = [
            topk_select(-common, quota) + i * len(common)
            for i, (common, quota) in enumerate(zip(in_video + in_frame, quotas, strict=True))
            if quota
        ]
        return Selection(torch.cat(picks))

    @staticmethod
    def _commonness(frames: Tensor, centre: Tensor) -> Tensor:
        """(T, P) of (T, P, D) tokens, by their distance to (1 or T, 1, D) centres."""
        distance = (frames - centre).square().sum(-1)
        return torch.stack([torch.exp(-distance / (2 * width)) for width in _WIDTHS]).sum(0)
