"""What families share whose vision tower is a Pixtral: any resolution, all pictures as one sequence of patches.

Families merge patches s x s or not at all. Break tokens between the rows of a picture are text: they stay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from ...policies.types import Grid
from .base import EncoderFacts, EncoderValues, InputFacts, VisualShape
from .tower_layers import feature_layer


def _merge_size(config: Any) -> int:
    return getattr(config, "spatial_merge_size", 1)


def _patches(config: Any, image_size: Any) -> tuple[int, int]:
    height, width = (int(side) // config.vision_config.patch_size for side in image_size)
    return height, width


def shape(facts: InputFacts) -> VisualShape:
    """One raster per picture, after the merger."""
    sizes = facts.arguments.get("image_sizes")
    if sizes is None:
        return VisualShape()
    merge = _merge_size(facts.config)
    height, width = (side // merge for side in _patches(facts.config, sizes[facts.index]))
    grid: Grid = (1, height, width)
    return VisualShape((grid,) if height * width == facts.length else None)


def packed(base: Any, arguments: Mapping[str, Any]) -> list[int] | None:
    """Patches of each picture in the tower's one sequence; None where sizes are not given."""
    sizes = arguments.get("image_sizes")
    return None if sizes is None else [math.prod(_patches(base.config, size)) for size in sizes]


def regroup(output: EncoderValues) -> list[Tensor]:
    """Patches stand row by row in each picture; the merger makes one token of s x s: their mean."""
    config, sizes = output.base.config, output.arguments.get("image_sizes")
    merge, patches = _merge_size(config), packed(output.base, output.arguments)
    if patches is None or sizes is None or merge == 1:
        return list(output.values[0].split(output.lengths))
    out = []
    for picture, size in zip(output.values[0].split(patches), sizes, strict=True):
        height, width = _patches(config, size)
        raster = picture.unflatten(0, (height, width))[: height // merge * merge, : width // merge * merge]
        out.append(raster.unflatten(1, (-1, merge)).unflatten(0, (-1, merge)).mean((1, 3)).flatten(0, 1))
    return out


def encoder_facts(tower: str = "vision_tower", projector: str = "multi_modal_projector") -> EncoderFacts:
    """Facts about the Pixtral tower, which is at this path in the base model, as is what gets its output."""

    def vision_attention(base: Any, layer: Literal["feature", "last"]) -> nn.Module:
        """Attention of the layer that `vision_feature_layer` names, or of the last."""
        layers, index = base.get_submodule(tower).transformer.layers, getattr(base.config, "vision_feature_layer", -1)
        attention: nn.Module = (layers[-1] if layer == "last" else feature_layer(layers, index)).attention
        return attention

    def pixtral(base: Any) -> tuple[nn.Module, nn.Module, int]:
        return base.get_submodule(tower), base.get_submodule(projector), _merge_size(base.config)

    return EncoderFacts(attention=vision_attention, regroup=regroup, packed=packed, pixtral=pixtral)


ENCODER = encoder_facts()
