"""Aya Vision and Command A Vision: square tiles of a SigLIP tower, patches merged 2 x 2."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from ..encoder_capture import Encoder
from .base import Family, register_family
from .llava import vision_layers
from .square_tiles import regroup, square


def vision_attention(base: Any, layer: Literal["feature", "last"]) -> nn.Module:
    layers, i = vision_layers(base), getattr(base.config, "vision_feature_layer", -1)
    i = i if isinstance(i, int) else i[-1]
    return layers[-1 if layer == "last" else i if i < 0 else i - 1].self_attn


FAMILY = register_family(
    Family(
        model_types=("aya_vision", "cohere2_vision"),
        shape=square,
        encoder=Encoder(vision_attention, lambda base: False, regroup),
        usual_towers=("siglip_vision_model",),
    )
)
