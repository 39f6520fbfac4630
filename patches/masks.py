"""Reading the padding of a batch from whatever attention mask the text model was given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..cache import layout_of


def padding_mask(mask: Any, cache: Any, batch: int, length: int) -> Tensor | None:
    """The 2-D padding mask over logical columns, (B, past + length) bool, or None for no padding.

    A static cache comes with a 4-D mask that `generate` has built; its padding is read back from the
    last query's row.

    Raises:
        ValueError: for masks that cannot be followed; the message names the alternative.
    """
    if isinstance(mask, dict):  # one per layer type
        if set(mask) != {"full_attention"}:
            raise ValueError(
                "pruning cannot follow ready-made attention masks of sliding-window layers; use the default "
                "(dynamic) cache, with which the model builds its own"
            )
        mask = mask["full_attention"]
    if mask is None:
        return None
    if mask.ndim == 2:
        return mask.bool()
    if mask.ndim != 4 or not getattr(cache, "is_compileable", False):
        raise ValueError(
            f"pruning cannot follow a custom attention mask of shape {tuple(mask.shape)}; pass a 2-D padding mask"
        )
    if layout_of(cache) is not None:
        if length > 1 and batch > 1:
            raise ValueError(
                "a static cache cannot continue a pruned batch with more than one token at a time; use the "
                "default (dynamic) cache"
            )
        return None  # decoded columns have no padding, and the layout knows the prompt's
    visible = mask[:, 0, -1, :length]
    return visible if visible.dtype == torch.bool else visible == 0
