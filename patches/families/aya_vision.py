"""Aya Vision and Command A Vision: square tiles of a SigLIP tower, patches merged 2 x 2."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from .base import EncoderFacts, Family
from .llava import embeddings, vision_layers
from .registry import register_family
from .square_tiles import regroup, square
from .tower_layers import feature_layer, layers_below_feature


def vision_attention(base: Any, layer: Literal["feature", "last"]) -> nn.Module:
    """Attention of the layer that `vision_feature_layer` names, or of the last."""
    layers, index = vision_layers(base), getattr(base.config, "vision_feature_layer", -1)
    attention: nn.Module = (layers[-1] if layer == "last" else feature_layer(layers, index)).self_attn
    return attention


def layers_to_feature(base: Any) -> Any:
    """The layers whose output is shuffled, and those below it."""
    return layers_below_feature(vision_layers(base), getattr(base.config, "vision_feature_layer", -1))


FAMILY = register_family(
    Family(
        model_types=("aya_vision", "cohere2_vision"),
        shape=square,
        encoder=EncoderFacts(
            attention=vision_attention,
            regroup=regroup,
            patch_conv=lambda base: embeddings(base).get_submodule("patch_embedding"),
            raster_layers=layers_to_feature,
            patches_per_token=lambda base: base.config.downsample_factor**2,
        ),
        usual_towers=("siglip_vision_model",),
    )
)
