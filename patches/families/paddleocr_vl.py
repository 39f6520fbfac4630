"""PaddleOCR-VL: as Qwen2-VL, images alone, with patches row by row."""

from __future__ import annotations

from dataclasses import replace

from . import merged_patches, qwen2_vl
from .base import EncoderFacts
from .registry import register_family
from .tower_layers import last_attention

ENCODER = EncoderFacts(
    attention=last_attention("visual.vision_model.encoder.layers"),
    regroup=merged_patches.regroup(by_row=True),
    merger=lambda base: base.projector,
)
FAMILY = register_family(
    replace(
        qwen2_vl.FAMILY,
        model_types=("paddleocr_vl",),
        kinds=("image",),
        encoder=ENCODER,
        lengths_by_grid=merged_patches.lengths(),
    )
)
