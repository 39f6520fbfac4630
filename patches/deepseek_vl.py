"""DeepSeek-VL: one raster per image, from a SigLIP tower."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from torch import nn

from . import llava
from .base import Family, register_family


def vision_attention(base: Any, layer: Literal["feature", "last"]) -> nn.Module:
    tower = base.vision_model  # transformers 4 wraps it once more
    return getattr(tower, "vision_model", tower).encoder.layers[-1].self_attn


ENCODER = replace(llava.ENCODER, attention=vision_attention, has_cls=lambda base: False, projector="aligner")
FAMILY = register_family(Family(model_types=("deepseek_vl",), shape=llava.shape, encoder=ENCODER))
