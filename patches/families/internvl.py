"""InternVL (the Hugging Face port) and Qianfan-OCR: square tiles with a thumbnail, patches merged 2 x 2."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from .base import EncoderFacts, Family
from .llava import has_cls
from .registry import register_family
from .square_tiles import regroup, square
from .tower_layers import feature_layer, layers_below_feature


def vision_layers(base: Any) -> Any:
    """All layers of the tower."""
    tower = base.vision_tower
    return tower.encoder.layer if hasattr(tower, "encoder") else tower.layers


def vision_attention(base: Any, layer: Literal["feature", "last"]) -> nn.Module:
    """Attention of the layer that `vision_feature_layer` names, or of the last."""
    layers = vision_layers(base)
    chosen = layers[-1] if layer == "last" else feature_layer(layers, base.config.vision_feature_layer)
    attention: nn.Module = chosen.attention
    return attention


def layers_to_feature(base: Any) -> Any:
    """The layers whose output is shuffled, and those below it."""
    return layers_below_feature(vision_layers(base), base.config.vision_feature_layer)


def patches_per_token(base: Any) -> int:
    """Patches that the pixel shuffle makes one token of."""
    side: int = round(1 / base.config.downsample_ratio)
    return side**2


FAMILY = register_family(
    Family(
        model_types=("internvl", "qianfan_ocr"),
        default_keep=0.5,
        shape=square,
        encoder=EncoderFacts(
            attention=vision_attention,
            regroup=regroup,
            has_cls=has_cls,
            patch_conv=lambda base: base.vision_tower.embeddings.patch_embeddings.projection,
            raster_layers=layers_to_feature,
            patches_per_token=patches_per_token,
        ),
        usual_towers=("internvl_vision", "qianfan_ocr_vision"),
    )
)
