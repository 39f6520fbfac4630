"""Cosmos 3 Edge: as Qwen2-VL, with the patch merger beside the vision tower."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from torch import nn

from . import merged_patches, qwen2_vl
from .base import EncoderFacts
from .registry import register_family


def vision_attention(base: Any, layer: Literal["feature", "last"]) -> nn.Module:
    """The projector reads the last layer."""
    attention: nn.Module = base.visual.encoder.layers[-1].self_attn
    return attention


ENCODER = EncoderFacts(attention=vision_attention, regroup=merged_patches.regroup(), merger=lambda base: base.projector)
FAMILY = register_family(replace(qwen2_vl.FAMILY, model_types=("cosmos3_edge",), encoder=ENCODER))
