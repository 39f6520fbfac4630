"""InternVL (the Hugging Face port) and Qianfan-OCR: square tiles with a thumbnail, patches merged 2 x 2."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from .base import EncoderFacts, Family, feature_layer
from .llava import has_cls
from .registry import register_family
from .square_tiles import regroup, square


def vision_attention(base: Any, layer: Literal["feature", "last"]) -> nn.Module:
    """Attention of the layer that `vision_feature_layer` names, or of the last."""
    tower = base.vision_tower
    layers = tower.encoder.layer if hasattr(tower, "encoder") else tower.layers
    chosen = layers[-1] if layer == "last" else feature_layer(layers, base.config.vision_feature_layer)
    attention: nn.Module = chosen.attention
    return attention


FAMILY = register_family(
    Family(
        model_types=("internvl", "qianfan_ocr"),
        default_keep=0.5,
        shape=square,
        encoder=EncoderFacts(attention=vision_attention, regroup=regroup, has_cls=has_cls),
        usual_towers=("internvl_vision", "qianfan_ocr_vision"),
    )
)
