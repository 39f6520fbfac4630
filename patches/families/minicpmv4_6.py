"""MiniCPM-V 4.6 and MiniCPM-OCR: slices of any resolution, patches merged 4 x 4 or 2 x 2, over Qwen3.5's text model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from . import qwen3_5
from .base import EncoderFacts, EncoderValues, InputFacts, VisualShape
from .merged_patches import mean_of_patches, merged_grid
from .registry import register_family
from .tower_layers import last_attention


def _sizes(facts: InputFacts | EncoderValues) -> Any:
    """(inputs, 2) of patches; None where not known."""
    return facts.arguments.get("target_sizes" if facts.kind == "image" else "target_sizes_videos")


def _first_merge(config: Any, facts: InputFacts | EncoderValues) -> int:
    """Along a side, patches that the vision tower merges between its layers."""
    mode = facts.arguments.get("downsample_mode") or config.downsample_mode
    return 1 if mode == "4x" else 2


def _last_merge(config: Any) -> tuple[int, int]:
    """Along (h, w), what is merged behind the tower."""
    height, width = config.merge_kernel_size
    return height**config.merger_times, width**config.merger_times


def shape(facts: InputFacts) -> VisualShape:
    """One raster for each slice or frame."""
    sizes = _sizes(facts)
    if sizes is None:
        return VisualShape()
    first, (height, width) = _first_merge(facts.config, facts), _last_merge(facts.config)
    grid = merged_grid((1, *sizes[facts.index]), (1, first * height, first * width))
    return VisualShape((grid,) if grid[1] * grid[2] == facts.length else None)


def regroup(output: EncoderValues) -> list[Tensor]:
    """The mean over what becomes one token; it stands row by row."""
    config = output.base.config
    sizes = _sizes(output) // _first_merge(config, output)
    slices = output.values[0].split([int(size.prod()) for size in sizes])
    merge = (1, *_last_merge(config))
    return [mean_of_patches(values, (1, *size), merge, by_row=True) for values, size in zip(slices, sizes, strict=True)]


FAMILY = register_family(
    replace(
        qwen3_5.FAMILY,
        model_types=("minicpmv4_6", "minicpm_ocr"),
        positions="1d",
        shape=shape,
        encoder=EncoderFacts(attention=last_attention("vision_tower.encoder.layers"), regroup=regroup),
    )
)
