"""DeepSeek-VL with two towers: a SigLIP and a SAM tower side by side, whose features are joined token by token."""

from __future__ import annotations

from dataclasses import replace

from . import deepseek_vl
from .registry import register_family

#: What is read is the SigLIP tower. Its aligner takes features of both.
ENCODER = replace(deepseek_vl.ENCODER, projector=None, layers=None, embeddings=None)
FAMILY = register_family(
    replace(
        deepseek_vl.FAMILY,
        model_types=("deepseek_vl_hybrid",),
        encoder=ENCODER,
        no_encoder_stage="a second tower encodes the whole picture, and features of both are joined",
        no_pixel_stage="a second tower encodes the whole picture, and features of both are joined",
    )
)
