"""Mistral 3: dynamic resolution from a Pixtral tower, patches merged s x s, break tokens between rows.

The tower takes all pictures as one sequence. Break tokens are text: they stay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from ..visual import Grid
from .base import Family, Kind, VisualShape, register_family
from .encoder import Encoder


def _patches(config: Any, image_size: Any) -> tuple[int, int]:
    height, width = (int(side) // config.vision_config.patch_size for side in image_size)
    return height, width


def shape(config: Any, kind: Kind, length: int, inputs: Mapping[str, Any], i: int) -> VisualShape:
    sizes = inputs.get("image_sizes")
    if sizes is None:
        return VisualShape()
    height, width = (side // config.spatial_merge_size for side in _patches(config, sizes[i]))
    grid: Grid = (1, height, width)
    return VisualShape((grid,) if height * width == length else None)


def vision_attention(base: Any, layer: Literal["feature", "last"]) -> nn.Module:
    layers, i = base.vision_tower.transformer.layers, base.config.vision_feature_layer
    i = i if isinstance(i, int) else i[-1]
    return layers[-1 if layer == "last" else i if i < 0 else i - 1].attention


def packed(base: Any, inputs: Mapping[str, Any]) -> list[int]:
    return [math.prod(_patches(base.config, size)) for size in inputs["image_sizes"]]


def regroup(base: Any, kind: Kind, values: Tensor, lengths: list[int], inputs: Mapping[str, Any]) -> list[Tensor]:
    """Patches stand row by row in each picture; the merger makes one token of s x s: their mean."""
    merge, out = base.config.spatial_merge_size, []
    pictures = values[0].split(packed(base, inputs))
    for picture, size in zip(pictures, inputs["image_sizes"], strict=True):
        height, width = _patches(base.config, size)
        raster = picture.unflatten(0, (height, width))[: height // merge * merge, : width // merge * merge]
        out.append(raster.unflatten(1, (-1, merge)).unflatten(0, (-1, merge)).mean((1, 3)).flatten(0, 1))
    return out


FAMILY = register_family(
    Family(
        model_types=("mistral3",),
        default_keep=0.5,
        shape=shape,
        encoder=Encoder(vision_attention, lambda base: False, regroup, packed=packed),
    )
)
