"""Qwen2-VL: dynamic resolution, 2 x 2 patch merger, multi-axis RoPE, images and videos."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .base import Family, Kind, VisualShape, register_family


def merged_shape(config: Any, kind: Kind, length: int, inputs: Mapping[str, Any], i: int) -> VisualShape:
    """The (t, h, w) grid of an image or video after the patch merger."""
    # Qwen3-VL computes video features through its image function, under the image's argument name.
    grids = inputs.get(f"{kind}_grid_thw", inputs.get("image_grid_thw"))
    if grids is None:
        return VisualShape()
    merge = config.vision_config.spatial_merge_size
    t, h, w = (int(side) for side in grids[i])
    grid = (t, h // merge, w // merge)
    return VisualShape((grid,) if grid[0] * grid[1] * grid[2] == length else None)


FAMILY = register_family(
    Family(
        model_types=("qwen2_vl",),
        positions="mrope",
        default_keep=0.5,
        kinds=("image", "video"),
        shape=merged_shape,
    )
)
