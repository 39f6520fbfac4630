"""MiniMax M3: any resolution, patches merged 2 x 2."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from . import merged_patches
from .base import EncoderFacts, Family
from .registry import register_family


def vision_attention(base: Any, layer: Literal["feature", "last"]) -> nn.Module:
    """The projector reads the last layer."""
    attention: nn.Module = base.vision_tower.layers[-1].self_attn
    return attention


FAMILY = register_family(
    Family(
        model_types=("minimax_m3_vl",),
        default_keep=0.5,
        kinds=("image", "video"),
        shape=merged_patches.shape(),
        encoder=EncoderFacts(attention=vision_attention, regroup=merged_patches.regroup()),
        no_encoder_stage="its tower packs all pictures into one sequence of patches that merge two by two",
    )
)
