"""LLaVA-OneVision: any-resolution images as in LLaVA-NeXT, and videos of pooled frames."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .base import EncoderValues, InputFacts, VisualShape
from .llava import tile_grid
from .llava_next import anyres_shape, mosaic_shape, regroup_images
from .llava_next_video import FAMILY as LLAVA_NEXT_VIDEO
from .registry import register_family


def scaled_mosaic(config: Any, image_size: Any, arguments: Mapping[str, Any]) -> tuple[int, int]:
    """(H, W) of the crops; the model scales a mosaic beyond the patch limit down to it."""
    height, width = mosaic_shape(config, image_size)
    limit = arguments.get("vision_aspect_ratio") or config.vision_aspect_ratio
    ratio = math.sqrt(height * width / (int(limit.rpartition("_")[2]) * tile_grid(config)[1] ** 2))
    return (int(height // ratio), int(width // ratio)) if ratio > 1.1 else (height, width)


def pooled_frame(config: Any) -> tuple[int, int]:
    """(H, W) of a video frame, which the model pools 2 x 2."""
    _, h, w = tile_grid(config)
    return math.ceil(h / 2), math.ceil(w / 2)


def shape(facts: InputFacts) -> VisualShape:
    """As LLaVA-NeXT's, or the pooled frames of a video and one newline, which closes it."""
    config, length = facts.config, facts.length
    if facts.kind == "video":
        h, w = pooled_frame(config)
        grid = ((length - 1) // (h * w), h, w)
        return VisualShape((grid,), (length - 1,)) if math.prod(grid) == length - 1 else VisualShape()
    sizes = facts.arguments.get("image_sizes")
    return anyres_shape(
        config, length, None if sizes is None else scaled_mosaic(config, sizes[facts.index], facts.arguments)
    )


def regroup(output: EncoderValues) -> list[Tensor]:
    """Thumbnail and scaled mosaic of each image, or frames pooled as the model pools them."""
    config = output.base.config
    if output.kind == "video":
        frames = output.values.mT.unflatten(-1, tile_grid(config)[1:])
        frames = F.interpolate(frames, pooled_frame(config), mode="bilinear").flatten(2).mT
        return list(frames.unflatten(0, (len(output.lengths), -1)).flatten(1, 2))
    return regroup_images(output, lambda size: scaled_mosaic(config, size, output.arguments))


# No projector, as in LLaVA-NeXT-Video: scaled mosaics and pooled frames have no token before it one-to-one.
assert LLAVA_NEXT_VIDEO.encoder is not None
ENCODER = replace(LLAVA_NEXT_VIDEO.encoder, regroup=regroup)
FAMILY = register_family(replace(LLAVA_NEXT_VIDEO, model_types=("llava_onevision",), shape=shape, encoder=ENCODER))
