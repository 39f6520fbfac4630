"""Cosmos 3 Edge: as Qwen2-VL, with the patch merger beside the vision tower."""

from __future__ import annotations

from dataclasses import replace

from . import merged_patches, qwen2_vl
from .base import EncoderFacts
from .registry import register_family
from .tower_layers import last_attention

ENCODER = EncoderFacts(
    attention=last_attention("visual.encoder.layers"),
    regroup=merged_patches.regroup(),
    merger=lambda base: base.projector,
)
FAMILY = register_family(replace(qwen2_vl.FAMILY, model_types=("cosmos3_edge",), encoder=ENCODER))
