"""Static caches: what is as long as they are has one length at all steps, for which a step is compiled once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def static_columns(cache: Any) -> int | None:
    """What all layers of a static cache have room for; None for other caches.

    Also None with layers that have a window, or that are of a transformers in which they do not count what they hold.
    """
    layers = getattr(cache, "layers", ())
    if not layers or any(type(layer).__name__ != "StaticLayer" for layer in layers):
        return None
    if not all(isinstance(getattr(layer, "cumulative_length", None), Tensor) for layer in layers):
        return None
    sizes: set[int] = {layer.max_cache_len for layer in layers}
    return sizes.pop() if len(sizes) == 1 else None


def full_length(mask: Any, cache: Any) -> Any:
    """A (B, L) padding mask over all columns that a pruned static cache will have been fed when it is full."""
    if cache.static_columns is None or not isinstance(mask, Tensor) or mask.ndim != 2:
        return mask
    return torch.nn.functional.pad(mask, (0, cache.static_columns + cache.layout.removed - mask.shape[1]), value=1)
