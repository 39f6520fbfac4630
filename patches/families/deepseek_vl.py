"""DeepSeek-VL: one raster per image, from a SigLIP tower."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from torch import nn

from . import llava
from .base import Family, register_family


def vision_attention(base: Any, layer: Literal["feature", "last"]) -> nn.Module:
    return tower(base)[-1].self_attn


def tower(base: Any) -> Any:
    return llava.unwrapped(base.vision_model).encoder.layers


ENCODER = replace(
    llava.ENCODER,
    attention=vision_attention,
    has_cls=lambda base: False,
    projector="aligner",
    tower=tower,
    embeddings=lambda base: llava.unwrapped(base.vision_model).embeddings,
)
FAMILY = register_family(
    Family(model_types=("deepseek_vl",), shape=llava.shape, encoder=ENCODER, usual_towers=llava.TOWERS)
)
