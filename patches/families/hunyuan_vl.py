"""HunYuan-VL: as Qwen2-VL, images alone; a token before and after each image, and one after every row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from . import merged_patches, qwen2_vl
from .base import EncoderFacts, InputFacts, Kind, VisualShape
from .registry import register_family
from .tower_layers import last_attention


def shape(facts: InputFacts) -> VisualShape:
    """One raster, with separators before it, after each of its rows and behind it."""
    grids = merged_patches.grids_of(facts.kind, facts.arguments)
    if grids is None:
        return VisualShape()
    _, h, w = merged_patches.merged_grid(grids[facts.index], merged_patches.square_merge(facts.config, facts.kind))
    if facts.length != h * (w + 1) + 2:
        return VisualShape()
    return VisualShape(((1, h, w),), (0, *(1 + y * (w + 1) + w for y in range(h)), facts.length - 1))


def lengths(config: Any, kind: Kind, arguments: Mapping[str, Any]) -> list[int] | None:
    """Tokens of each image, with its separators: before transformers 5.24 all images come as one."""
    grids = merged_patches.grids_of(kind, arguments)
    if grids is None:
        return None
    merge = merged_patches.square_merge(config, kind)
    return [h * (w + 1) + 2 for _, h, w in (merged_patches.merged_grid(grid, merge) for grid in grids)]


FAMILY = register_family(
    replace(
        qwen2_vl.FAMILY,
        model_types=("hunyuan_vl",),
        kinds=("image",),
        shape=shape,
        lengths_by_grid=lengths,
        encoder=EncoderFacts(
            attention=last_attention("vision_tower.layers"), regroup=merged_patches.regroup(by_row=True)
        ),
    )
)
