"""Qwen3.5: as Qwen2-VL, over a decoder most of whose layers are linear attention.

A linear layer cannot be kept from using a token afterwards. So removing visual tokens means here what a shorter prompt
with the same positions means.
"""

from __future__ import annotations

from dataclasses import replace

from . import qwen2_vl
from .registry import register_family

FAMILY = register_family(
    replace(
        qwen2_vl.FAMILY,
        model_types=("qwen3_5", "qwen3_5_moe"),
        no_decoder_stage="its linear-attention layers would not forget them",
    )
)
