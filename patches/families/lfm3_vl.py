"""LFM3-VL: any resolution, patches merged 2 x 2; convolutions between attention layers, in the tower as well."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from torch import nn

from . import lfm2_vl, merged_patches
from .base import EncoderFacts
from .registry import register_family


def vision_attention(base: Any, layer: Literal["feature", "last"]) -> nn.Module:
    """The last layer with attention; convolution layers may follow it."""
    layers = [each for each in base.vision_tower.layers if hasattr(each, "self_attn")]
    attention: nn.Module = layers[-1].self_attn
    return attention


FAMILY = register_family(
    replace(
        lfm2_vl.FAMILY,
        model_types=("lfm3_vl",),
        kinds=("image", "video"),
        shape=merged_patches.shape(),
        encoder=EncoderFacts(
            attention=vision_attention,
            regroup=merged_patches.regroup(),
            merger=lambda base: base.multi_modal_projector,
        ),
        usual_towers=(),
    )
)
