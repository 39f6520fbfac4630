"""LLaVA-1.5: one raster per image, from a CLIP tower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..visual import Grid
from .base import Family, Kind, VisualShape, register_family


def tile_grid(config: Any) -> Grid:
    """(1, H, W) patches of one picture or tile as the vision tower sees it."""
    vision = config.vision_config
    side = vision.image_size // vision.patch_size
    return (1, side, side)


def shape(config: Any, kind: Kind, length: int, inputs: Mapping[str, Any], i: int) -> VisualShape:
    grid = tile_grid(config)
    return VisualShape((grid,) if grid[1] * grid[2] == length else None)


FAMILY = register_family(Family(model_types=("llava",), shape=shape))
