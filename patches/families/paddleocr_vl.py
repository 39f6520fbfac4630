"""PaddleOCR-VL: as Qwen2-VL, images alone, with patches row by row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from torch import nn

from . import merged_patches, qwen2_vl
from .base import EncoderFacts
from .registry import register_family


def vision_attention(base: Any, layer: Literal["feature", "last"]) -> nn.Module:
    """The projector reads the last layer."""
    attention: nn.Module = base.visual.vision_model.encoder.layers[-1].self_attn
    return attention


ENCODER = EncoderFacts(
    attention=vision_attention,
    regroup=merged_patches.regroup(by_row=True),
    merger=lambda base: base.projector,
)
FAMILY = register_family(replace(qwen2_vl.FAMILY, model_types=("paddleocr_vl",), kinds=("image",), encoder=ENCODER))
