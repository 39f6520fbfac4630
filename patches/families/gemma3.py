"""Gemma 3: 256 tokens per image, which attend to each other both ways; sliding-window layers."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from ..encoder_capture import Encoder
from .base import Family, register_family
from .llava import vision_layers
from .square_tiles import regroup, square


def vision_attention(base: Any, layer: Literal["feature", "last"]) -> nn.Module:
    return vision_layers(base)[-1].self_attn


_NO_STAGE = "its pictures attend to themselves both ways, which masks of single layers do not follow"
FAMILY = register_family(
    Family(
        model_types=("gemma3",),
        default_keep=0.5,
        masks="base",
        decoder_stage=_NO_STAGE,
        shape=square,
        encoder=Encoder(vision_attention, lambda base: False, regroup),
        usual_towers=("siglip_vision_model",),
    )
)
