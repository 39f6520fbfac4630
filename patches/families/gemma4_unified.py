"""Gemma 4 without a vision encoder: patches go into the language model as they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from . import gemma4
from .base import InputFacts, MaskInputs, VisualShape
from .gemma4 import masks_by, pooled_shape
from .registry import register_family


def shape(facts: InputFacts) -> VisualShape:
    """One raster for each input; its patches are the tokens."""
    return pooled_shape(facts, 1)


def masks(pruned: MaskInputs) -> Any:
    """As the model builds them, for the columns that stay; a padding mask, where its text model builds its own."""
    from transformers.masking_utils import create_masks_for_generate

    return masks_by(create_masks_for_generate, pruned)


FAMILY = register_family(
    replace(
        gemma4.FAMILY,
        model_types=("gemma4_unified",),
        shape=shape,
        encoder=None,
        build_masks=masks,
        no_encoder_stage="it has no vision encoder",
        no_pixel_stage="it has no vision encoder",
    )
)
