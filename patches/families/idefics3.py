"""Idefics3 and SmolVLM: square tiles with a thumbnail, patches merged s x s, text between the tiles."""

from __future__ import annotations

from typing import Any

from .base import EncoderFacts, Family
from .registry import register_family
from .square_tiles import regroup, square
from .tower_layers import last_attention


def tiles(config: Any, returned: list[int]) -> list[int]:
    """From transformers 5 on, a row's tiles are returned as one; rows may have none."""
    side = config.vision_config.image_size // config.vision_config.patch_size // config.scale_factor
    return [side * side for length in returned for _ in range(length // side**2)]


FAMILY = register_family(
    Family(
        model_types=("idefics3", "smolvlm"),
        default_keep=0.5,
        text_model="text_model",
        shape=square,
        lengths=tiles,
        encoder=EncoderFacts(
            attention=last_attention("vision_model.encoder.layers"),
            regroup=regroup,
            patch_conv=lambda base: base.vision_model.embeddings.patch_embedding,
            raster_layers=lambda base: base.vision_model.encoder.layers,
            patches_per_token=lambda base: base.config.scale_factor**2,
        ),
    )
)
