"""PaliGemma: one raster per image; the whole prompt attends to itself both ways; positions begin at 1."""

from __future__ import annotations

from dataclasses import replace

from . import gemma3
from .base import register_family

FAMILY = register_family(replace(gemma3.FAMILY, model_types=("paligemma",), default_keep=0.25, first_position=1))
