"""LLaVA-OneVision: any-resolution images as in LLaVA-NeXT, and videos of pooled frames."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from . import llava
from .base import Family, Kind, VisualShape, register_family
from .llava import tile_grid
from .llava_next import anyres_shape, mosaic_shape, regroup_images


def _mosaic(config: Any, image_size: Any, inputs: Mapping[str, Any]) -> tuple[int, int]:
    """(H, W) of the crops; the model scales a mosaic beyond the patch limit down to it."""
    height, width = mosaic_shape(config, image_size)
    limit = inputs.get("vision_aspect_ratio") or config.vision_aspect_ratio
    ratio = math.sqrt(height * width / (int(limit.rpartition("_")[2]) * tile_grid(config)[1] ** 2))
    return (int(height // ratio), int(width // ratio)) if ratio > 1.1 else (height, width)


def _pooled(config: Any) -> tuple[int, int]:
    """(H, W) of a video frame, which the model pools 2 x 2."""
    _, h, w = tile_grid(config)
    return math.ceil(h / 2), math.ceil(w / 2)


def shape(config: Any, kind: Kind, length: int, inputs: Mapping[str, Any], i: int) -> VisualShape:
    if kind == "video":  # one newline closes the video
        h, w = _pooled(config)
        grid = ((length - 1) // (h * w), h, w)
        return VisualShape((grid,), (length - 1,)) if math.prod(grid) == length - 1 else VisualShape()
    sizes = inputs.get("image_sizes")
    return anyres_shape(config, length, None if sizes is None else _mosaic(config, sizes[i], inputs))


def regroup(base: Any, kind: Kind, values: Tensor, lengths: list[int], inputs: Mapping[str, Any]) -> list[Tensor]:
    if kind == "video":
        _, h, w = tile_grid(base.config)
        frames = values.mT.unflatten(-1, (h, w))
        frames = F.interpolate(frames, _pooled(base.config), mode="bilinear").flatten(2).mT
        return list(frames.unflatten(0, (len(lengths), -1)).flatten(1, 2))
    scaled = lambda size: _mosaic(base.config, size, inputs)
    return regroup_images(base, values, lengths, inputs["image_sizes"], scaled)


# No projector: scaled mosaics and pooled frames have no token before it one-to-one.
ENCODER = replace(llava.ENCODER, regroup=regroup, projector=None, tower=None)
FAMILY = register_family(
    Family(
        model_types=("llava_onevision",),
        kinds=("image", "video"),
        shape=shape,
        encoder=ENCODER,
        usual_towers=llava.TOWERS,
    )
)
