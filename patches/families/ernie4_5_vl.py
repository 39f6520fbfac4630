"""ERNIE 4.5 VL: as Qwen2-VL, with pairs of frames merged, and experts of their own for visual tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from torch import nn

from ...policies.types import Grid
from . import merged_patches, qwen2_vl
from .base import EncoderFacts, Kind, PrunedSequence
from .registry import register_family


def merge(config: Any, kind: Kind) -> Grid:
    """Patches that become one token; an image is merged with itself."""
    vision = config.vision_config
    return (vision.temporal_merge_size if kind == "video" else 1, *(vision.spatial_merge_size,) * 2)


def vision_attention(base: Any, layer: Literal["feature", "last"]) -> nn.Module:
    """The resampler reads the last block."""
    attention: nn.Module = base.vision_tower.blocks[-1].attn
    return attention


def expert_types(pruned: PrunedSequence) -> dict[str, Any]:
    """Whether a column is for the experts of visual tokens."""
    types = pruned.arguments.get("moe_mm_token_type_ids")
    return {} if types is None else {"moe_mm_token_type_ids": pruned.packing.take(types)}


FAMILY = register_family(
    replace(
        qwen2_vl.FAMILY,
        model_types=("ernie4_5_vl_moe",),
        shape=merged_patches.shape(merge),
        extras=expert_types,
        layer_arguments=("moe_mm_token_type_ids",),
        encoder=EncoderFacts(attention=vision_attention, regroup=merged_patches.regroup(merge)),
    )
)
