"""Attention masks of families that build them above the text model, since pictures attend to themselves both ways."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .cache import PrunedCacheError
from .packing import Packing
from .past import Past


def shortened(masks: Any, packing: Packing, past: Past, valid: Tensor, window: int | None) -> Any:
    """What the text model is to be given instead of masks for the full sequence.

    Args:
        masks: 4-D (B or 1, 1, L, P + L), bool or additive, or a dict of them by kind of layer; kernels
            that take padding masks alone have 2-D ones, or none.
        packing: what stays of this call's L columns.
        past: the P columns that the cache held.
        valid: (B, P + M) bool, padding of what stays.
        window: of sliding-window layers, which count the columns that are left.

    Raises:
        PrunedCacheError: for sliding-window layers that have a past.
    """
    if not isinstance(masks, dict):
        return _gathered(masks, packing, past, valid)
    if past.physical and "sliding_attention" in masks:
        raise PrunedCacheError(
            "a picture in a later turn is not supported on sliding-window layers with pruning; start a fresh cache"
        )
    full = _gathered(masks["full_attention"], packing, past, valid)
    short = {"full_attention": full}
    if "sliding_attention" in masks:
        short["sliding_attention"] = _within(full, window) if full.ndim == 4 else full
    return short


def _gathered(mask: Any, packing: Packing, past: Past, valid: Tensor) -> Tensor:
    if mask is None or mask.ndim != 4:
        return valid
    batch, length = packing.index.shape
    held = torch.arange(past.physical, device=valid.device).expand(batch, -1)
    columns = torch.cat([held, past.physical + packing.index], 1)
    mask = mask.expand(batch, *mask.shape[1:])
    rows = mask.gather(2, packing.index[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
    short = rows.gather(3, columns[:, None, None].expand(-1, mask.shape[1], length, -1))
    own = torch.eye(length, dtype=torch.bool, device=valid.device)
    own = torch.nn.functional.pad(own, (past.physical, 0))
    # Padding sees itself alone: a row that sees nothing would be NaN.
    seen = torch.where(packing.valid[:, None, :, None], valid[:, None, None], own)
    if short.dtype == torch.bool:
        return torch.where(packing.valid[:, None, :, None], short & seen, seen)
    lowest = torch.finfo(short.dtype).min
    return torch.where(packing.valid[:, None, :, None], short, 0).masked_fill(~seen, lowest)


def _within(mask: Tensor, window: int | None) -> Tensor:
    """Columns at most `window` back, of a mask without a past."""
    if window is None:
        return mask
    near = torch.ones(mask.shape[-2:], dtype=torch.bool, device=mask.device).triu(1 - window)
    return mask & near if mask.dtype == torch.bool else mask.masked_fill(~near, torch.finfo(mask.dtype).min)
