"""Video-LLaVA: images as in LLaVA-1.5. Videos stay whole: placeholders of each frame include one of its CLS token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from torch import nn

from . import llava
from .base import register_family


def vision_layers(base: Any) -> Any:
    return llava.unwrapped(base.image_tower).encoder.layers


def tower(base: Any) -> Any:
    return llava.below_features(vision_layers(base), base.config.vision_feature_layer)


def vision_attention(base: Any, layer: Literal["feature", "last"]) -> nn.Module:
    return (vision_layers(base) if layer == "last" else tower(base))[-1].self_attn


ENCODER = replace(
    llava.ENCODER,
    attention=vision_attention,
    tower=tower,
    embeddings=lambda base: llava.unwrapped(base.image_tower).embeddings,
)
FAMILY = register_family(replace(llava.FAMILY, model_types=("video_llava",), encoder=ENCODER, other_towers={}))
