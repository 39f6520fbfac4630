"""PixelPrune: blocks of pixels that their neighbours do not predict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..validate import real
from .base import Policy
from .registration import register
from .types import Selection, VisualTokens


@register("pixelprune")
@dataclass
class PixelPrune(Policy):
    """Predictive coding of the picture, before any model runs (PixelPrune, arXiv:2604.00886).

    A block is the pixels of one visual token. With the neighbours A (left), B (above) and C (above A) of a block:

    1. The prediction is B if C is like A and not like B, else A. In the first row it is the left neighbour, in the
       first column the upper one.
    2. The first block stays, and so does every block that is not like its prediction. Two blocks are alike if no pixel
       of them differs by more than `tau`. A block that leaves counts as its prediction from then on.

    Flat areas, straight edges and repeated rows leave; noise stays. With `tau` 0 blocks are compared by hashes of 64
    bits, in one pass over the pixels. With a larger one, all blocks of a diagonal are predicted at once.

    A budget takes the blocks that differ most from their prediction, by their largest difference, whatever `tau` says
    of them. Ties go to the lowest index. Frames of a video are selected from one by one.

    Args:
        tau: in the pixel values that the vision encoder gets, >= 0. One step of 8 bits is 1 / (255 * std) of them for
            a processor that divides by `std`: 0.015 with that of CLIP, 0.008 with 0.5.
    """

    tau: float = 0.0
    stage: ClassVar[Literal["pixels"]] = "pixels"
    pixel_features: ClassVar[Literal["raw"]] = "raw"
    adaptive: ClassVar[bool] = True
    paper: ClassVar[str] = "PixelPrune, arXiv:2604.00886"
    keeps: ClassVar[str] = "blocks of pixels that their neighbours do not predict, before the vision tower"
    deviates: ClassVar[str] = "tau in normalised pixel values; a budget keeps what is predicted worst"

    def __post_init__(self) -> None:
        real(self, "tau", least=0)

    def select(self, tokens: VisualTokens, n_keep: int | None) -> Selection:
        _, height, width = tokens.grid or (1, 1, len(tokens))  # T is 1: videos come by frame
        blocks = tokens.features.view(height, width, -1)
        if n_keep is None:
            keep = _unpredicted(blocks, self.tau) if self.tau else _changed(_hashes(blocks))
            return Selection(keep.flatten().nonzero()[:, 0])
        above = _takes_above(blocks, self.tau) if self.tau else _takes_above(_hashes(blocks), 0)
        error = _difference(blocks, _prediction(blocks, above))
        error[0, 0] = torch.inf
        order = error.flatten().argsort(descending=True, stable=True)
        return Selection(order[:n_keep].sort().values)


def _hashes(blocks: Tensor) -> Tensor:
    """(H, W, 1) int64, equal for blocks of equal values, and for others with the chance of random 64 bits."""
    values = blocks + 0.0  # -0.0 and 0.0 are equal
    values = F.pad(values, (0, -values.shape[2] % (8 // values.element_size())))
    words = values.contiguous().view(torch.int64)
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, (words.shape[2],), generator=generator) * 2 + 1
    return (words * factors.to(words.device)).sum(2, keepdim=True)


def _difference(a: Tensor, b: Tensor) -> Tensor:
    """(...) largest difference between the values of blocks, (..., D)."""
    return (a - b).abs().amax(-1)


def _alike(a: Tensor, b: Tensor, tau: float) -> Tensor:
    """(...) bool, whether no value of blocks, (..., D), differs by more than `tau`."""
    return (a == b).all(-1) if tau == 0 else _difference(a, b) <= tau


def _takes_above(blocks: Tensor, tau: float) -> Tensor:
    """(H, W) bool, whether the prediction of a block is the one above it, else the one to the left."""
    above = torch.zeros(blocks.shape[:2], dtype=torch.bool, device=blocks.device)
    above[1:, 0] = True
    corner, upper, left = blocks[:-1, :-1], blocks[:-1, 1:], blocks[1:, :-1]
    above[1:, 1:] = _alike(corner, left, tau) & ~_alike(corner, upper, tau)
    return above


def _prediction(blocks: Tensor, above: Tensor) -> Tensor:
    """(H, W, D) the block above where `above` is True, else the one to the left; the first block predicts itself."""
    height, width = above.shape
    index = torch.arange(height * width, device=above.device).view(height, width)
    index = torch.where(above, index - width, index - 1).clamp(min=0)
    return blocks.flatten(0, 1)[index.flatten()].view_as(blocks)


def _changed(hashes: Tensor) -> Tensor:
    """(H, W) bool, blocks that differ from their prediction, by their hashes; the first does."""
    keep = ~_alike(hashes, _prediction(hashes, _takes_above(hashes, 0)), 0)
    keep[0, 0] = True
    return keep


def _unpredicted(blocks: Tensor, tau: float) -> Tensor:
    """(H, W) bool, blocks that are not like their prediction, from neighbours that may be predictions themselves.

    What is on a diagonal depends on the diagonals before it only.
    """
    height, width, _ = blocks.shape
    known = blocks.clone()
    keep = torch.zeros(height, width, dtype=torch.bool, device=blocks.device)
    keep[0, 0] = True
    for diagonal in range(1, height + width - 1):
        row = torch.arange(max(0, diagonal - width + 1), min(height, diagonal + 1), device=blocks.device)
        column = diagonal - row
        row_above, column_left = (row - 1).clamp(min=0), (column - 1).clamp(min=0)
        left, upper, corner = known[row, column_left], known[row_above, column], known[row_above, column_left]
        above = (column == 0) | ((row > 0) & _alike(corner, left, tau) & ~_alike(corner, upper, tau))
        predicted, here = torch.where(above[:, None], upper, left), blocks[row, column]
        keep[row, column] = differs = ~_alike(here, predicted, tau)
        known[row, column] = torch.where(differs[:, None], here, predicted)
    return keep
