"""Video-LLaVA: images as in LLaVA-1.5. Videos stay whole: placeholders of each frame include one of its CLS token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from torch import nn

from . import llava
from .base import register_family


def tower(base: Any) -> Any:
    layers, i = llava.unwrapped(base.image_tower).encoder.layers, base.config.vision_feature_layer
    if not isinstance(i, int):
        return layers[:0]
    return layers[: i + 1 or None] if i < 0 else layers[:i]


def vision_attention(base: Any, layer: Literal["feature", "last"]) -> nn.Module:
    return (llava.unwrapped(base.image_tower).encoder.layers if layer == "last" else tower(base))[-1].self_attn


ENCODER = replace(
    llava.ENCODER,
    attention=vision_attention,
    tower=tower,
    embeddings=lambda base: llava.unwrapped(base.image_tower).embeddings,
)
FAMILY = register_family(replace(llava.FAMILY, model_types=("video_llava",), encoder=ENCODER))
