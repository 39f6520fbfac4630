"""Idefics 2: queries of a resampler, which lie in no raster."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from . import aria
from .registry import register_family


def latents(config: Any, returned: list[int]) -> list[int]:
    """Tokens of each picture: those of a row are returned as one, and rows may have none."""
    each: int = config.perceiver_config.resampler_n_latents
    return [each for length in returned for _ in range(length // each)]


FAMILY = register_family(replace(aria.FAMILY, model_types=("idefics2",), text_model="text_model", lengths=latents))
