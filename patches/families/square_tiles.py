"""What families share whose encoder cuts pictures into square tiles and merges patches s x s (pixel shuffle)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .base import Kind, VisualShape


def square(config: Any, kind: Kind, length: int, inputs: Mapping[str, Any], i: int) -> VisualShape:
    """One square raster; every tile of a cut picture is a visual input of its own."""
    side = math.isqrt(length)
    return VisualShape(((1, side, side),) if side * side == length else None)


def regroup(base: Any, kind: Kind, values: Tensor, lengths: list[int], inputs: Mapping[str, Any]) -> list[Tensor]:
    """The mean over the patches that become one token."""
    side = math.isqrt(values.shape[1])
    merge = side // math.isqrt(lengths[0])
    blocks = values.unflatten(1, (side // merge, merge, side // merge, merge))
    return list(blocks.mean((2, 4)).flatten(1, 2))
