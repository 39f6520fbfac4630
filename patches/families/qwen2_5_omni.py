"""The thinker of Qwen2.5-Omni: as Qwen2.5-VL. Audio stays.

Before transformers 5.24 its head merges visual features and calls the text model itself, and the features of all inputs
come as one tensor.
"""

from __future__ import annotations

from dataclasses import replace

from . import merged_patches, qwen2_5_vl
from .registry import register_family

#: In the base model, and in the head of older versions.
TEXT_MODEL = ("language_model", "model")
FAMILY = register_family(
    replace(
        qwen2_5_vl.FAMILY,
        model_types=("qwen2_5_omni_thinker",),
        text_model=TEXT_MODEL,
        lengths_by_grid=merged_patches.lengths(),
    )
)
