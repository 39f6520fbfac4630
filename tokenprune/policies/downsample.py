"""Downsample: the vision tower sees a smaller picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from .base import Policy, register
from .tokenflex import bin_centres, bins


@register("downsample")
@dataclass
class Downsample(Policy):
    """Pictures are resized (bicubic, anti-aliased) to as many tokens as the budget leaves, the model is not touched.

    The baseline that many methods do not reach (arXiv:2510.07143), and the one that makes everything
    cheaper, the vision tower included. Learned position embeddings are interpolated, as transformers does
    it. The raster is the one of the picture's shape that is nearest to the budget; its count is in the
    report. A token takes the place of the one in the middle of what it shows. Tiles of a picture that was cut
    are resized one by one.

    On Qwen-VL give the image processor a smaller `max_pixels` instead: there it is the same thing.
    """

    stage: ClassVar[Literal["encoder"]] = "encoder"
    paper: ClassVar[str] = "baseline"
    keeps: ClassVar[str] = "a smaller picture, before the vision tower"

    @property
    def exact(self) -> bool:
        return False

    def resized(self, height: int, width: int, n_keep: int) -> tuple[int, int]:
        return bins(n_keep, height, width)

    @staticmethod
    def places(height: int, width: int, rows: int, columns: int) -> list[int]:
        """Where the tokens of a resized picture stand in the raster of the whole one."""
        return [y * width + x for y in bin_centres(rows, height) for x in bin_centres(columns, width)]
