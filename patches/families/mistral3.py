"""Mistral 3: dynamic resolution from a Pixtral tower, patches merged s x s, break tokens between rows."""

from __future__ import annotations

from . import pixtral
from .base import Family
from .registry import register_family

FAMILY = register_family(
    Family(
        model_types=("mistral3",),
        default_keep=0.5,
        shape=pixtral.shape,
        encoder=pixtral.ENCODER,
        usual_towers=("pixtral",),
    )
)
