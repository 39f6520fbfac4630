"""LLaVA-1.5: one raster per image, from a CLIP tower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor, nn

from ...policies.types import Grid
from ..encoder_capture import Encoder
from . import pixtral
from .base import Family, Kind, VisualShape, register_family


def tile_grid(config: Any) -> Grid:
    """(1, H, W) patches of one picture or tile as the vision tower sees it."""
    vision = config.vision_config
    side = vision.image_size // vision.patch_size
    return (1, side, side)


def shape(config: Any, kind: Kind, length: int, inputs: Mapping[str, Any], i: int) -> VisualShape:
    grid = tile_grid(config)
    return VisualShape((grid,) if grid[1] * grid[2] == length else None)


def unwrapped(tower: Any) -> Any:
    """A CLIP or SigLIP tower, which transformers 4 wraps once more."""
    return getattr(tower, "vision_model", tower)


def vision_layers(base: Any) -> Any:
    return unwrapped(base.vision_tower).encoder.layers


def embeddings(base: Any) -> nn.Module:
    return unwrapped(base.vision_tower).embeddings


def vision_attention(base: Any, layer: Literal["feature", "last"]) -> nn.Module:
    layers, i = vision_layers(base), base.config.vision_feature_layer
    if layer == "last":
        return layers[-1].self_attn
    i = i if isinstance(i, int) else i[-1]
    return layers[i if i < 0 else i - 1].self_attn  # hidden states count the embeddings as 0


def has_cls(base: Any) -> bool:
    return base.config.vision_feature_select_strategy == "default"  # whose one effect is to drop it


def regroup(base: Any, kind: Kind, values: Tensor, lengths: list[int], inputs: Mapping[str, Any]) -> list[Tensor]:
    return list(values)


def below_features(layers: Any, i: int | list[int]) -> Any:
    """The layers below the output that the projector reads, `vision_feature_layer`; none where it reads several."""
    if not isinstance(i, int):
        return layers[:0]
    return layers[: i + 1 or None] if i < 0 else layers[:i]


def tower(base: Any) -> Any:
    return below_features(vision_layers(base), base.config.vision_feature_layer)


ENCODER = Encoder(
    vision_attention, has_cls, regroup, projector="multi_modal_projector", tower=tower, embeddings=embeddings
)
#: Towers that `ENCODER` is about.
TOWERS = ("clip_vision_model", "siglip_vision_model")
#: Pixtral 12B and the like.
WITH_PIXTRAL = Family(
    model_types=("llava",),
    shape=pixtral.shape,
    encoder=replace(pixtral.ENCODER, projector="multi_modal_projector"),
    tower_stage="its Pixtral tower takes all pictures as one sequence",
)
FAMILY = register_family(
    Family(
        model_types=("llava",),
        shape=shape,
        encoder=ENCODER,
        usual_towers=TOWERS,
        other_towers={"pixtral": WITH_PIXTRAL},
    )
)
