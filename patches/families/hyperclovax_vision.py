"""HyperCLOVA X Vision: the vision tower of Qwen2.5-VL, over a text model with 1-D positions."""

from __future__ import annotations

from dataclasses import replace

from . import exaone4_5, qwen2_vl
from .registry import register_family

FAMILY = register_family(
    replace(
        exaone4_5.FAMILY,
        model_types=("hyperclovax_vision_v2",),
        encoder=qwen2_vl.encoder_facts("vision_model"),
        usual_towers=("qwen2_5_vl_vision",),
    )
)
