"""Position ids of a pruned sequence: as the caller numbers it, or renumbered without gaps."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from .past import Past


def renumbered(
    kind: Literal["1d", "mrope"], positions: Tensor, keep_mask: Tensor, kept: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Position ids without the gaps that dropped columns leave, and how far each row's end has moved.

    On mRoPE a picture's tokens have coordinates, which no shift can close: kept columns are
    counted instead, all axes alike, as if they were text.

    Args:
        kind: of the family's positions.
        positions: (..., B or 1, L), in the caller's numbering.
        keep_mask: (B, L) bool, False at pruned columns.
        kept: (B, L) bool, False at pruned columns and at padding.
        shift: (B,) int64, how far the caller's numbering is ahead already.

    Returns:
        positions (..., B, L), and the new shift (B,).
    """
    if kind == "1d":
        closed = positions - (~keep_mask).long().cumsum(1) - shift[:, None]
    else:
        rank = kept.long().cumsum(1) - 1
        first = kept.long().argmax(1, keepdim=True)
        along = positions[-3] if positions.ndim == 3 else positions  # the temporal axis
        start = along.expand_as(rank).gather(1, first) - shift[:, None]
        closed = (start + rank).expand(*positions.shape[:-2], *rank.shape)
        # A row that loses nothing is the stock model's, whatever its neighbours lose.
        closed = torch.where(keep_mask.all(1, keepdim=True), positions - shift[:, None], closed)
    moved = (positions - closed).reshape(-1, *kept.shape)[-1]
    last = (kept * torch.arange(kept.shape[1], device=kept.device)).amax(1, keepdim=True)  # padding may follow it
    return closed.clamp(min=0), moved.gather(1, last)[:, 0]


def callers_positions(kwargs: dict[str, Any], past: Past, length: int) -> Tensor:
    """Position ids in the caller's numbering, (..., B or 1, L)."""
    positions: Tensor | None = kwargs.get("position_ids")
    if positions is not None:
        return positions[None] if positions.ndim == 1 else positions
    start = 0 if past.cache is None else past.cache.get_seq_length()  # of a static cache it is on the device
    return (start + torch.arange(length, device=past.device))[None]
