"""What families share whose encoder cuts pictures into square tiles and merges patches s x s (pixel shuffle)."""

from __future__ import annotations

import math

from torch import Tensor

from .base import EncoderValues, InputFacts, VisualShape


def square(facts: InputFacts) -> VisualShape:
    """One square raster; every tile of a cut picture is a visual input of its own."""
    side = math.isqrt(facts.length)
    return VisualShape(((1, side, side),) if side * side == facts.length else None)


def regroup(output: EncoderValues) -> list[Tensor]:
    """The mean over the patches that become one token."""
    side = math.isqrt(output.values.shape[1])
    merge = side // math.isqrt(output.lengths[0])
    blocks = output.values.unflatten(1, (side // merge, merge, side // merge, merge))
    return list(blocks.mean((2, 4)).flatten(1, 2))
