"""PaliGemma: one raster per image; the whole prompt attends to itself both ways; positions begin at 1.

Not on transformers 4, whose masks for it do not agree with the oracles.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version

from . import gemma3
from .base import one_patch
from .llava import embeddings, vision_layers
from .registry import register_family

assert gemma3.FAMILY.encoder is not None
ENCODER = replace(
    gemma3.FAMILY.encoder,
    projector="multi_modal_projector",
    layers=vision_layers,
    embeddings=embeddings,
    patch_conv=None,
    raster_layers=None,
    patches_per_token=one_patch,
)
FAMILY = replace(gemma3.FAMILY, model_types=("paligemma",), default_keep=0.25, first_position=1, encoder=ENCODER)
if not version("transformers").startswith("4."):
    register_family(FAMILY)
