"""DeepSeek-VL: one raster per image, from a SigLIP tower."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from . import llava
from .base import EncoderFacts, Family
from .registry import register_family


def vision_layers(base: Any) -> Any:
    """All layers of the tower; the aligner reads the last."""
    return llava.inner_tower(base.vision_model).encoder.layers


def vision_attention(base: Any, layer: Literal["feature", "last"]) -> nn.Module:
    """Attention of the last layer."""
    attention: nn.Module = vision_layers(base)[-1].self_attn
    return attention


def embeddings(base: Any) -> nn.Module:
    """What makes tokens of pixels."""
    module: nn.Module = llava.inner_tower(base.vision_model).embeddings
    return module


ENCODER = EncoderFacts(
    attention=vision_attention,
    regroup=llava.regroup,
    projector="aligner",
    layers=vision_layers,
    embeddings=embeddings,
)
FAMILY = register_family(
    Family(model_types=("deepseek_vl",), shape=llava.shape, encoder=ENCODER, usual_towers=llava.TOWERS)
)
