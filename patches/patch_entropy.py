"""How much is going on in the pixels of each visual token: the entropy of their grey levels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .families.base import Kind

#: Grey levels between the darkest and the lightest pixel of a call.
_LEVELS = 32


def patch_entropies(base: Any, kind: Kind, lengths: list[int], arguments: Mapping[str, Any]) -> list[Tensor] | None:
    """For each visual input, (N,) float32 in [0, 1]: entropy of the grey levels, over the largest possible one.

    Args:
        base: the base model.
        kind: of the inputs.
        lengths: tokens of each input.
        arguments: of the feature function, with the pixels.

    Returns:
        None where it is not known which pixels belong to which token: for pictures in several tiles, and where
        inputs are neither square pictures of square tokens nor patches in the order of the tokens.
    """
    pixels = arguments.get("pixel_values_videos") if kind == "video" else None
    pixels = arguments.get("pixel_values") if pixels is None else pixels
    if not isinstance(pixels, Tensor) or not lengths:
        return None
    pixels = pixels.detach().float()
    if pixels.ndim == 2:  # Qwen: patches, those that one token is made of one after another
        grey = _grey_of_patches(base, pixels, sum(lengths))
    elif pixels.ndim == 4:
        grey = _grey_of_pictures(pixels, lengths)
    else:
        return None
    return None if grey is None else list(_entropy(grey).split(lengths))


def _grey_of_patches(base: Any, pixels: Tensor, n: int) -> Tensor | None:
    """(N, pixels) of (patches, channels * pixels)."""
    vision = base.config.vision_config
    channels: Any = getattr(vision, "in_channels", None) or getattr(vision, "in_chans", 3)
    # Only where each token is a square of patches, one after another: some families put frames or rows together.
    if len(pixels) != n * getattr(vision, "spatial_merge_size", 1) ** 2 or pixels.shape[1] % channels:
        return None
    grey: Tensor = pixels.unflatten(1, (channels, -1)).mean(1).reshape(n, -1)
    return grey


def _grey_of_pictures(pixels: Tensor, lengths: list[int]) -> Tensor | None:
    """(N, pixels) of (B, C, H, W) square pictures with square rasters of tokens."""
    side, whole = math.isqrt(lengths[0]), pixels.shape[-1]
    if [side * side] * len(pixels) != lengths or pixels.shape[-2] != whole or whole % side:
        return None
    patch = whole // side
    blocks = pixels.mean(1).unflatten(-1, (side, patch)).unflatten(-3, (side, patch))  # (B, side, p, side, p)
    grey: Tensor = blocks.transpose(2, 3).reshape(sum(lengths), patch * patch)
    return grey


def _entropy(grey: Tensor) -> Tensor:
    """(N,) of (N, pixels), in [0, 1]."""
    low, high = grey.min(), grey.max()
    level = ((grey - low) / (high - low).clamp(min=1e-12) * _LEVELS).long().clamp(max=_LEVELS - 1)
    counts = grey.new_zeros(len(grey), _LEVELS).scatter_add_(1, level, torch.ones_like(grey))
    share = counts.sort(1).values / grey.shape[1]  # tokens with equal counts are ties on every device
    entropy: Tensor = torch.special.entr(share).sum(1) / math.log(_LEVELS)
    return entropy
