"""InternVL (the Hugging Face port): square tiles with a thumbnail, patches merged 2 x 2."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from ..encoder_capture import Encoder
from .base import Family, register_family
from .llava import has_cls
from .square_tiles import regroup, square


def vision_attention(base: Any, layer: Literal["feature", "last"]) -> nn.Module:
    layers, i = base.vision_tower.encoder.layer, base.config.vision_feature_layer
    return layers[-1 if layer == "last" else i if i < 0 else i - 1].attention


FAMILY = register_family(
    Family(
        model_types=("internvl",),
        default_keep=0.5,
        shape=square,
        encoder=Encoder(vision_attention, has_cls, regroup),
    )
)
