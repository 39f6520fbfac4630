"""Qwen3.5: as Qwen2-VL, over a decoder most of whose layers are linear attention.

What has passed a linear layer cannot be hidden from it afterwards, so removing visual tokens here means
what a shorter prompt with the same positions means.
"""

from __future__ import annotations

from dataclasses import replace

from . import qwen2_vl
from .base import register_family

_NO_STAGE = "its linear-attention layers would not forget them"
FAMILY = register_family(replace(qwen2_vl.FAMILY, model_types=("qwen3_5", "qwen3_5_moe"), decoder_stage=_NO_STAGE))
