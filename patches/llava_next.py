"""LLaVA-NeXT (1.6): a thumbnail, then a mosaic of crops, unpadded, with a newline token per row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

from .base import Family, Kind, VisualShape, register_family
from .llava import tile_grid


def mosaic_shape(config: Any, image_size: Any) -> tuple[int, int]:
    """(H, W) patches of the crops after unpadding, newline tokens not counted."""
    _, h, w = tile_grid(config)
    rows, columns = get_anyres_image_grid_shape(
        image_size, config.image_grid_pinpoints, config.vision_config.image_size
    )
    _, height, width = unpad_image(torch.empty(1, rows * h, columns * w, device="meta"), image_size).shape
    return height, width


def anyres_shape(config: Any, length: int, mosaic: tuple[int, int] | None) -> VisualShape:
    """Layout of a thumbnail, an optional mosaic with a newline after each row, or the plain thumbnail
    with one newline."""
    thumbnail = tile_grid(config)
    tile = thumbnail[1] * thumbnail[2]
    if length == tile + 1:
        return VisualShape((thumbnail,), (tile,))
    if mosaic is None or length != tile + mosaic[0] * (mosaic[1] + 1):
        return VisualShape()
    height, width = mosaic
    newlines = tuple(tile + y * (width + 1) + width for y in range(height))
    return VisualShape((thumbnail, (1, height, width)), newlines)


def shape(config: Any, kind: Kind, length: int, inputs: Mapping[str, Any], i: int) -> VisualShape:
    sizes = inputs.get("image_sizes")
    return anyres_shape(config, length, None if sizes is None else mosaic_shape(config, sizes[i]))


FAMILY = register_family(Family(model_types=("llava_next",), shape=shape))
