"""Kimi K2.5: any resolution, patches merged 2 x 2, the frames of a video chunk pooled into one."""

from __future__ import annotations

from typing import Any

from ...policies.types import Grid
from . import merged_patches
from .base import EncoderFacts, Family, InputFacts, Kind, VisualShape
from .registry import register_family
from .tower_layers import last_attention


def merge(config: Any, kind: Kind) -> Grid:
    """Patches that become one token in a frame."""
    height, width = config.vision_config.merge_kernel_size
    return (1, height, width)


def shape(facts: InputFacts) -> VisualShape:
    """One raster, of a video chunk as well."""
    grids = merged_patches.grids_of(facts.kind, facts.arguments)
    if grids is None:
        return VisualShape()
    _, h, w = merged_patches.merged_grid(grids[facts.index], merge(facts.config, facts.kind))
    return VisualShape(((1, h, w),) if h * w == facts.length else None)


def regroup(output: Any) -> Any:
    """The mean over the patches that become one token, and over frames."""
    by_input = merged_patches.regroup(merge, by_row=True)(output)
    return [values.unflatten(0, (-1, length)).mean(0) for values, length in zip(by_input, output.lengths, strict=True)]


FAMILY = register_family(
    Family(
        model_types=("kimi_k25",),
        default_keep=0.5,
        kinds=("image", "video"),
        shape=shape,
        encoder=EncoderFacts(attention=last_attention("vision_tower.layers", "attn"), regroup=regroup),
        no_encoder_stage=merged_patches.NO_ENCODER_STAGE,
    )
)
