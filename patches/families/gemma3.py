"""Gemma 3 and ShieldGemma 2: 256 tokens per image, which attend to each other both ways; sliding-window layers."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from .base import EncoderFacts, Family
from .llava import embeddings, vision_layers
from .registry import register_family
from .square_tiles import regroup, square


def vision_attention(base: Any, layer: Literal["feature", "last"]) -> nn.Module:
    """The projector reads the last layer."""
    attention: nn.Module = vision_layers(base)[-1].self_attn
    return attention


def patches_per_token(base: Any) -> int:
    """Patches whose mean becomes one token."""
    vision = base.config.vision_config
    patches: int = (vision.image_size // vision.patch_size) ** 2
    return patches // int(base.config.mm_tokens_per_image)


FAMILY = register_family(
    Family(
        model_types=("gemma3", "shieldgemma2"),
        default_keep=0.5,
        masks="base",
        no_decoder_stage="its pictures attend to themselves both ways, which masks of single layers do not follow",
        shape=square,
        encoder=EncoderFacts(
            attention=vision_attention,
            regroup=regroup,
            patch_conv=lambda base: embeddings(base).get_submodule("patch_embedding"),
            raster_layers=vision_layers,
            patches_per_token=patches_per_token,
        ),
        usual_towers=("siglip_vision_model",),
    )
)
