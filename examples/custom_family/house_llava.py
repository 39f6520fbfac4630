"""Facts about a model type of one's own, so that tokenprune can prune it.

The architecture here is LLaVA's under another name, as a company's fork would have it: `config.model_type` is
"house_llava". A CLIP tower gives one raster per picture, and a pointwise projector makes a visual token of each patch.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tokenprune import EncoderFacts, EncoderValues, Family, InputFacts, VisualShape


def shape(facts: InputFacts) -> VisualShape:
    """The raster of one picture, if it has as many placeholders as patches."""
    vision = facts.config.vision_config
    side = vision.image_size // vision.patch_size
    return VisualShape(grids=((1, side, side),) if side * side == facts.length else None)


def attention(base: Any, layer: str) -> nn.Module:
    """The attention module whose output becomes the features ("feature": the last but one), or the "last"."""
    tower = getattr(base.vision_tower, "vision_model", base.vision_tower)  # transformers 4 wraps it once more
    return tower.encoder.layers[-1 if layer == "last" else -2].self_attn


def regroup(output: EncoderValues) -> list[Tensor]:
    """Values of the encoder, (pictures, patches, C), as one (patches, C) tensor per picture."""
    return list(output.values)


FAMILY = Family(
    model_types=("house_llava",),
    positions="1d",
    default_keep=0.25,
    shape=shape,
    encoder=EncoderFacts(
        attention=attention,
        regroup=regroup,
        has_cls=lambda base: True,
        projector="multi_modal_projector",
    ),
    no_encoder_stage="nobody has tried it",
)
