"""Frames of a video, and segments in which they are alike, for policies that compare frames."""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor

from ..ops import topk_select
from .types import VisualTokens


def frame_count(tokens: VisualTokens) -> int:
    """Frames of a video; 1 of an image, and where the raster is not known."""
    return tokens.grid[0] if tokens.grid is not None else 1


def segments(frames: Tensor, fewest: int, threshold: float) -> list[tuple[int, int]]:
    """Cuts a video between its least similar neighbours.

    Args:
        frames: (T, D), a vector for each frame.
        fewest: segments to make at least, if there are as many frames: the least similar neighbours are parted.
        threshold: neighbours of a smaller cosine similarity are parted in any case.

    Returns:
        first frame and end of each segment.
    """
    return cut_where(similarities(frames), fewest, threshold)


def similarities(frames: Tensor) -> Tensor:
    """(T - 1,) cosine similarities of neighbouring frames, given as (T, D)."""
    frames = F.normalize(frames, dim=-1)
    return (frames[1:] * frames[:-1]).sum(-1)


def cut_where(similarity: Tensor, fewest: int, threshold: float) -> list[tuple[int, int]]:
    """`segments`, from the (T - 1,) similarities of neighbours."""
    t = len(similarity) + 1
    cut = similarity < threshold
    least = min(fewest, t) - 1
    if least:
        cut[topk_select(-similarity, least)] = True
    borders = [0, *(i for i, is_cut in enumerate(cut.tolist(), 1) if is_cut), t]
    return list(itertools.pairwise(borders))
