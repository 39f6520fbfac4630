"""Which patches of a picture are nothing but padding, told by its pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .families.base import EncoderValues, Family, Kind

#: Processors pad with the mean colour, rounded down to a whole number. Normalised, it is this close to 0 at most.
_NEAR_MEAN = 0.02


def padded_patches(
    base: Any, family: Family, kind: Kind, lengths: list[int], arguments: Mapping[str, Any]
) -> list[Tensor] | None:
    """For each picture, (N,) bool on the host, True at patches that have the mean colour of the processor throughout.

    Looking for them waits for the device once.

    Args:
        base: the base model.
        family: its facts; its encoder makes a token of each patch.
        kind: of the inputs.
        lengths: tokens of each input.
        arguments: of the feature function, with the pixels.

    Returns:
        None if no picture has any, or if the pixels are not square pictures of as many patches as there are tokens.
    """
    pixels = arguments.get("pixel_values")
    if kind != "image" or family.encoder is None or not isinstance(pixels, Tensor) or pixels.ndim != 4:
        return None
    side, whole = math.isqrt(lengths[0]), pixels.shape[-1]
    if [side * side] * len(pixels) != lengths or pixels.shape[-2] != whole or side == 0 or whole % side:
        return None
    patch = whole // side
    blocks = pixels.detach().unflatten(-1, (side, patch)).unflatten(-3, (side, patch))
    is_even = blocks.amax((3, 5)) == blocks.amin((3, 5))  # (B, C, side, side)
    is_mean = blocks[:, :, :, 0, :, 0].abs() < _NEAR_MEAN
    found = (is_even & is_mean).all(1).flatten(1)[..., None].float().cpu()
    if not bool(found.any()):
        return None
    by_input = family.encoder.regroup(EncoderValues(base, kind, found, lengths, arguments))
    return [torch.gt(value[:, 0], 0.5) for value in by_input]
