"""Video-LLaVA: images as in LLaVA-1.5. Videos stay whole: placeholders of each frame include one of its CLS token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from torch import nn

from . import llava
from .registry import register_family
from .tower_layers import layers_below_feature


def vision_layers(base: Any) -> Any:
    """All layers of the image tower."""
    return llava.layers_of(base.image_tower)


def layers_to_feature(base: Any) -> Any:
    """The layers whose output the projector reads, and those below it."""
    return layers_below_feature(vision_layers(base), base.config.vision_feature_layer)


def vision_attention(base: Any, layer: Literal["feature", "last"]) -> nn.Module:
    """Attention of the layer that `vision_feature_layer` names, or of the last."""
    return llava.attention_of((vision_layers(base) if layer == "last" else layers_to_feature(base))[-1])


def embeddings(base: Any) -> nn.Module:
    """What makes tokens of pixels."""
    module: nn.Module = llava.inner_tower(base.image_tower).embeddings
    return module


ENCODER = replace(llava.ENCODER, attention=vision_attention, layers=layers_to_feature, embeddings=embeddings)
FAMILY = register_family(replace(llava.FAMILY, model_types=("video_llava",), encoder=ENCODER, other_towers={}))
