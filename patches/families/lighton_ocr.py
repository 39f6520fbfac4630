"""LightOnOCR: as Mistral 3, with the tower under another name."""

from __future__ import annotations

from dataclasses import replace

from . import mistral3, pixtral
from .registry import register_family

FAMILY = register_family(
    replace(
        mistral3.FAMILY,
        model_types=("lighton_ocr",),
        encoder=pixtral.encoder_facts("vision_encoder", "vision_projection"),
    )
)
