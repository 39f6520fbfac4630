"""Downsample: the vision encoder gets a smaller image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from .base import Policy
from .registration import register
from .tokenflex import bin_centres, bins


@register("downsample")
@dataclass
class Downsample(Policy):
    """Resizing of the image to as many tokens as the budget leaves: a baseline.

    1. The token raster with the image's aspect ratio that is nearest to the budget is found. Its number of tokens is
       in the report.
    2. The image is resized to it (bicubic, anti-aliased) before the vision encoder. Learned position embeddings are
       interpolated, as transformers does it. Tiles of an image that was cut are resized one by one.
    3. Each token takes the position of the token of the full image in the middle of the area that it shows.

    Many methods do not reach this baseline (arXiv:2510.07143), and it makes everything cheaper, the vision encoder
    included. On Qwen-VL give the image processor a smaller `max_pixels` instead; it has the same effect there.
    """

    stage: ClassVar[Literal["encoder"]] = "encoder"
    paper: ClassVar[str] = "baseline"
    keeps: ClassVar[str] = "a smaller picture, before the vision tower"

    @property
    def exact(self) -> bool:
        return False

    def resized_shape(self, height: int, width: int, n_keep: int) -> tuple[int, int]:
        return bins(n_keep, height, width)

    @staticmethod
    def source_indices(height: int, width: int, rows: int, columns: int) -> list[int]:
        return [y * width + x for y in bin_centres(rows, height) for x in bin_centres(columns, width)]
