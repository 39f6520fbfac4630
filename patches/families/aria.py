"""Aria: queries of a resampler, which lie in no raster."""

from __future__ import annotations

from .base import Family
from .registry import register_family

FAMILY = register_family(
    Family(
        model_types=("aria",),
        default_keep=0.5,
        no_encoder_stage="a resampler makes its tokens of the whole picture",
        no_pixel_stage="a resampler makes its tokens of the whole picture",
    )
)
