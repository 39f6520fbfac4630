"""LLaVA-1.5: one raster per image, from a CLIP tower."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from torch import Tensor, nn

from ...policies.types import Grid
from . import pixtral
from .base import EncoderFacts, EncoderValues, Family, InputFacts, VisualShape
from .registry import register_family
from .tower_layers import feature_layer, layers_below_feature


def tile_grid(config: Any) -> Grid:
    """(1, H, W) patches of one picture or tile as the vision tower sees it."""
    vision = config.vision_config
    side = vision.image_size // vision.patch_size
    return (1, side, side)


def shape(facts: InputFacts) -> VisualShape:
    """One raster."""
    grid = tile_grid(facts.config)
    return VisualShape((grid,) if grid[1] * grid[2] == facts.length else None)


def inner_tower(tower: Any) -> Any:
    """A CLIP or SigLIP tower, which transformers 4 wraps once more."""
    return getattr(tower, "vision_model", tower)


def layers_of(tower: Any) -> Any:
    """All layers of a tower of `TOWERS` or `READABLE_TOWERS`."""
    tower = inner_tower(tower)
    stack = getattr(tower, "encoder", getattr(tower, "model", tower))  # the second of DINOv3
    return stack.layers if hasattr(stack, "layers") else stack.layer


def attention_of(layer: Any) -> nn.Module:
    """The attention of a layer of `layers_of`."""
    found: nn.Module = layer.self_attn if hasattr(layer, "self_attn") else layer.attention
    return getattr(found, "attention", found)  # before transformers 5.x, that of a ViT is one deeper


def vision_layers(base: Any) -> Any:
    """All layers of the tower."""
    return layers_of(base.vision_tower)


def embeddings(base: Any) -> nn.Module:
    """What makes tokens of pixels."""
    module: nn.Module = inner_tower(base.vision_tower).embeddings
    return module


def vision_attention(base: Any, layer: Literal["feature", "last"]) -> nn.Module:
    """Attention of the layer that `vision_feature_layer` names, or of the last."""
    layers = vision_layers(base)
    chosen = layers[-1] if layer == "last" else feature_layer(layers, base.config.vision_feature_layer)
    return attention_of(chosen)


def has_cls(base: Any) -> bool:
    """Whether token 0 is CLS: the strategy "default" does nothing but drop it."""
    return bool(base.config.vision_feature_select_strategy == "default")


def regroup(output: EncoderValues) -> list[Tensor]:
    """One picture is one piece."""
    return list(output.values)


def layers_to_feature(base: Any) -> Any:
    """The layers whose output the projector reads, and those below it."""
    return layers_below_feature(vision_layers(base), base.config.vision_feature_layer)


ENCODER = EncoderFacts(
    attention=vision_attention,
    regroup=regroup,
    has_cls=has_cls,
    projector="multi_modal_projector",
    layers=layers_to_feature,
    embeddings=embeddings,
)
#: Vision towers that `ENCODER` is about.
TOWERS = ("clip_vision_model", "siglip_vision_model")
#: Towers whose attention is found as theirs is. Register tokens, where there are any, stay among a picture's tokens.
READABLE_TOWERS = (
    "aimv2_vision_model",
    "chinese_clip_vision_model",
    "dinov2",
    "dinov2_with_registers",
    "dinov3_vit",
    "ijepa",
    "mlcd",
    "mlcd_vision_model",
    "vit",
)
#: Pixtral 12B and the like.
WITH_PIXTRAL = Family(
    model_types=("llava",),
    shape=pixtral.shape,
    encoder=replace(pixtral.ENCODER, projector="multi_modal_projector"),
)
FAMILY = register_family(
    Family(
        model_types=("llava",),
        shape=shape,
        encoder=ENCODER,
        usual_towers=TOWERS,
        readable_towers=READABLE_TOWERS,
        other_towers={"pixtral": WITH_PIXTRAL},
    )
)
