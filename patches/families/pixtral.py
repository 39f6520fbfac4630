"""What families share whose vision tower is a Pixtral: any resolution, all pictures as one sequence of patches.

Families merge patches s x s or not at all. Break tokens between the rows of a picture are text: they stay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from ...policies.types import Grid
from ..encoder_capture import Encoder
from .base import Kind, VisualShape


def _merge(config: Any) -> int:
    return getattr(config, "spatial_merge_size", 1)


def _patches(config: Any, image_size: Any) -> tuple[int, int]:
    height, width = (int(side) // config.vision_config.patch_size for side in image_size)
    return height, width


def shape(config: Any, kind: Kind, length: int, inputs: Mapping[str, Any], i: int) -> VisualShape:
    """One raster per picture, after the merger."""
    sizes = inputs.get("image_sizes")
    if sizes is None:
        return VisualShape()
    height, width = (side // _merge(config) for side in _patches(config, sizes[i]))
    grid: Grid = (1, height, width)
    return VisualShape((grid,) if height * width == length else None)


def vision_attention(base: Any, layer: Literal["feature", "last"]) -> nn.Module:
    """The layer whose output the projector reads, `vision_feature_layer`, or the last."""
    layers, i = base.vision_tower.transformer.layers, base.config.vision_feature_layer
    i = i if isinstance(i, int) else i[-1]
    return layers[-1 if layer == "last" else i if i < 0 else i - 1].attention


def packed(base: Any, inputs: Mapping[str, Any]) -> list[int] | None:
    """Patches of each picture in the tower's one sequence; None where sizes are not given."""
    sizes = inputs.get("image_sizes")
    return None if sizes is None else [math.prod(_patches(base.config, size)) for size in sizes]


def regroup(base: Any, kind: Kind, values: Tensor, lengths: list[int], inputs: Mapping[str, Any]) -> list[Tensor]:
    """Patches stand row by row in each picture; the merger makes one token of s x s: their mean."""
    merge, out, patches = _merge(base.config), [], packed(base, inputs)
    if patches is None or merge == 1:
        return list(values[0].split(lengths))
    pictures = values[0].split(patches)
    for picture, size in zip(pictures, inputs["image_sizes"], strict=True):
        height, width = _patches(base.config, size)
        raster = picture.unflatten(0, (height, width))[: height // merge * merge, : width // merge * merge]
        out.append(raster.unflatten(1, (-1, merge)).unflatten(0, (-1, merge)).mean((1, 3)).flatten(0, 1))
    return out


ENCODER = Encoder(vision_attention, lambda base: False, regroup, packed=packed)
