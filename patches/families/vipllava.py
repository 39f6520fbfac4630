"""VipLLaVA: as LLaVA-1.5, with features of several layers of the tower side by side."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from torch import nn

from . import llava
from .registry import register_family
from .tower_layers import feature_layer


def vision_attention(base: Any, layer: Literal["feature", "last"]) -> nn.Module:
    """Attention of the deepest of the layers that are read, or of the last."""
    layers, config = llava.vision_layers(base), base.config
    if layer == "last":
        return llava.attention_of(layers[-1])
    chosen = getattr(config, "vision_feature_layers", None)  # renamed in transformers 5
    chosen = config.vision_feature_layer if chosen is None else chosen
    # The deepest comes first: -2, -5, -8, -11, 6.
    return llava.attention_of(feature_layer(layers, chosen if isinstance(chosen, int) else chosen[0]))


def has_cls(base: Any) -> bool:
    """It drops the first token, whatever the tower."""
    return True


ENCODER = replace(llava.ENCODER, attention=vision_attention, has_cls=has_cls, layers=None)
FAMILY = register_family(
    replace(
        llava.FAMILY,
        model_types=("vipllava",),
        encoder=ENCODER,
        other_towers={},
        no_encoder_stage="its projector reads several layers of the tower side by side",
        no_pixel_stage="its projector reads several layers of the tower side by side",
    )
)
