"""Ovis 2: square tiles, patches merged; its visual tokens are mixtures of a table of embeddings."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from .base import EncoderFacts, Family
from .registry import register_family
from .square_tiles import regroup, square


def vision_attention(base: Any, layer: Literal["feature", "last"]) -> nn.Module:
    """The head of the tower reads the last layer."""
    attention: nn.Module = base.vision_tower.transformer.encoder.layers[-1].attention
    return attention


FAMILY = register_family(
    Family(
        model_types=("ovis2",),
        default_keep=0.5,
        shape=square,
        encoder=EncoderFacts(attention=vision_attention, regroup=regroup),
    )
)
