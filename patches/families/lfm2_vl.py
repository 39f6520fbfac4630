"""LFM2-VL: tiles of any raster, patches merged; short convolutions between attention layers of the decoder."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from . import llava
from .base import EncoderFacts, EncoderValues, Family, InputFacts, VisualShape
from .merged_patches import mean_of_patches, merged_grid
from .registry import register_since


def shape(facts: InputFacts) -> VisualShape:
    """One raster for each tile, after its patches were merged."""
    sizes, factor = facts.arguments.get("spatial_shapes"), facts.config.downsample_factor
    if sizes is None:
        return VisualShape()
    grid = merged_grid((1, *sizes[facts.index]), (1, factor, factor))
    return VisualShape((grid,) if grid[1] * grid[2] == facts.length else None)


def vision_attention(base: Any, layer: Literal["feature", "last"]) -> nn.Module:
    """The projector reads the last layer."""
    attention: nn.Module = llava.vision_layers(base)[-1].self_attn
    return attention


def regroup(output: EncoderValues) -> list[Tensor]:
    """The mean over the patches that become one token; they stand row by row, with padding behind them."""
    factor = output.base.config.downsample_factor
    return [
        mean_of_patches(values[: int(size.prod())], (1, *size), (1, factor, factor), by_row=True)
        for values, size in zip(output.values, output.arguments["spatial_shapes"], strict=True)
    ]


FAMILY = register_since(
    "5.5",
    "its text model has a KV cache of its own class, which cannot hold fewer columns than were fed",
    Family(
        model_types=("lfm2_vl",),
        default_keep=0.5,
        shape=shape,
        encoder=EncoderFacts(attention=vision_attention, regroup=regroup),
        no_decoder_stage="its convolution layers would not forget them",
        usual_towers=("siglip2_vision_model",),
    ),
    "lfm2-vl",
)
