"""LLaVA-NeXT-Video: any-resolution images as in LLaVA-NeXT, and videos of pooled frames."""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from . import llava, llava_next
from .base import EncoderValues, InputFacts, VisualShape
from .llava import tile_grid
from .registry import register_family


def shape(facts: InputFacts) -> VisualShape:
    """As LLaVA-NeXT's, or the pooled frames of a video."""
    if facts.kind == "image":
        return llava_next.shape(facts)
    h, w = (side // facts.config.spatial_pool_stride for side in tile_grid(facts.config)[1:])
    frames, rest = divmod(facts.length, h * w)
    return VisualShape(None if rest else ((frames, h, w),))


def regroup(output: EncoderValues) -> list[Tensor]:
    """As LLaVA-NeXT's, or frames pooled as the model pools them."""
    if output.kind == "image":
        return llava_next.regroup(output)
    config = output.base.config
    frames = output.values.mT.unflatten(-1, tile_grid(config)[1:])
    pooled = F.avg_pool2d(frames, config.spatial_pool_stride).flatten(2).mT
    return list(pooled.unflatten(0, (len(output.lengths), -1)).flatten(1, 2))


# No projector: pooled frames have no token before it one-to-one.
ENCODER = replace(
    llava_next.ENCODER, regroup=regroup, projector=None, layers=None, raster_layers=llava.layers_to_feature
)
FAMILY = register_family(
    replace(
        llava_next.FAMILY,
        model_types=("llava_next_video",),
        kinds=("image", "video"),
        shape=shape,
        encoder=ENCODER,
        no_pixel_stage="what it makes of a picture or video after its tower blends neighbouring tokens",
    )
)
