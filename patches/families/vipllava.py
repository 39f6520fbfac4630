"""VipLLaVA: as LLaVA-1.5, with features of several layers of the tower side by side."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from torch import nn

from . import llava
from .base import register_family


def vision_attention(base: Any, layer: Literal["feature", "last"]) -> nn.Module:
    layers, config = llava.vision_layers(base), base.config
    if layer == "last":
        return layers[-1].self_attn
    chosen = getattr(config, "vision_feature_layers", None)  # renamed in transformers 5
    chosen = config.vision_feature_layer if chosen is None else chosen
    i = chosen if isinstance(chosen, int) else chosen[0]  # the deepest: -2, -5, -8, -11, 6
    return layers[i if i < 0 else i - 1].self_attn


ENCODER = replace(llava.ENCODER, attention=vision_attention, has_cls=lambda base: True, tower=None)
FAMILY = register_family(
    replace(
        llava.FAMILY,
        model_types=("vipllava",),
        encoder=ENCODER,
        other_towers={},
        tower_stage="its projector reads several layers of the tower side by side",
    )
)
