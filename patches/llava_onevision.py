"""LLaVA-OneVision: any-resolution images as in LLaVA-NeXT, and videos of pooled frames."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .base import Family, Kind, VisualShape, register_family
from .llava import tile_grid
from .llava_next import anyres_shape, mosaic_shape


def shape(config: Any, kind: Kind, length: int, inputs: Mapping[str, Any], i: int) -> VisualShape:
    _, h, w = tile_grid(config)
    if kind == "video":  # frames are pooled 2 x 2; one newline closes the video
        grid = ((length - 1) // (math.ceil(h / 2) * math.ceil(w / 2)), math.ceil(h / 2), math.ceil(w / 2))
        return VisualShape((grid,), (length - 1,)) if math.prod(grid) == length - 1 else VisualShape()
    sizes = inputs.get("image_sizes")
    if sizes is None:
        return anyres_shape(config, length, None)
    height, width = mosaic_shape(config, sizes[i])
    # A mosaic beyond the patch limit is scaled down to it by the model.
    limit = inputs.get("vision_aspect_ratio") or config.vision_aspect_ratio
    ratio = math.sqrt(height * width / (int(limit.rpartition("_")[2]) * h**2))
    if ratio > 1.1:
        height, width = int(height // ratio), int(width // ratio)
    return anyres_shape(config, length, (height, width))


FAMILY = register_family(Family(model_types=("llava_onevision",), kinds=("image", "video"), shape=shape))
