"""LLaVA-NeXT-Video: any-resolution images as in LLaVA-NeXT, and videos of pooled frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from . import llava, llava_next
from .base import Family, Kind, VisualShape, register_family
from .llava import tile_grid


def shape(config: Any, kind: Kind, length: int, inputs: Mapping[str, Any], i: int) -> VisualShape:
    if kind == "image":
        return llava_next.shape(config, kind, length, inputs, i)
    h, w = (side // config.spatial_pool_stride for side in tile_grid(config)[1:])
    frames, rest = divmod(length, h * w)
    return VisualShape(None if rest else ((frames, h, w),))


def regroup(base: Any, kind: Kind, values: Tensor, lengths: list[int], inputs: Mapping[str, Any]) -> list[Tensor]:
    if kind == "image":
        return llava_next.regroup(base, kind, values, lengths, inputs)
    frames = values.mT.unflatten(-1, tile_grid(base.config)[1:])
    pooled = F.avg_pool2d(frames, base.config.spatial_pool_stride).flatten(2).mT
    return list(pooled.unflatten(0, (len(lengths), -1)).flatten(1, 2))


# No projector: pooled frames have no token before it one-to-one.
ENCODER = replace(llava_next.ENCODER, regroup=regroup, projector=None, tower=None)
FAMILY = register_family(
    Family(
        model_types=("llava_next_video",),
        kinds=("image", "video"),
        shape=shape,
        encoder=ENCODER,
        usual_towers=llava.TOWERS,
    )
)
