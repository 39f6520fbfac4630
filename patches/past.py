"""What a KV cache held before a call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .cache import ColumnLayout, Layout, layout_of, physical_length


@dataclass(frozen=True)
class Past:
    """What a cache held before this call.

    Attributes:
        layout: of a cache that was pruned before.
        logical: columns that the caller has fed.
        physical: columns that the layers below all decoder cuts hold.
        columns: (B, physical) int64, the logical column of each.
        shift: (B,) int64, what compact positions have moved left by.
        cache: the cache itself, or None.
    """

    layout: Layout | None
    logical: int
    physical: int
    columns: Tensor
    shift: Tensor
    cache: Any

    @classmethod
    def of(cls, cache: Any, batch: int, device: torch.device) -> Past:
        """What a cache (or None) holds for `batch` rows."""
        layout = layout_of(cache)
        logical = 0 if cache is None else int(cache.get_seq_length())
        physical = physical_length(cache)
        if layout is None:
            columns = torch.arange(physical, device=device).expand(batch, -1)
            return cls(None, logical, physical, columns, torch.zeros(batch, dtype=torch.int64, device=device), cache)
        columns = layout.columns_until(logical).to(device)
        return cls(layout, logical, physical, columns, layout.shift.to(device), cache)

    @property
    def shifted(self) -> bool:
        """Whether any position has moved."""
        return self.layout is not None and self.layout.shifted

    def mask(self, logical: Tensor | None) -> Tensor:
        """Padding mask over the columns held, (B, physical) bool."""
        if self.layout is not None:
            return self.layout.mask(logical, self.physical).to(self.columns.device)
        if logical is None:
            return torch.ones_like(self.columns, dtype=torch.bool)
        return logical[:, : self.physical].bool()

    def by_decoder_layer(self, layer: int, logical: Tensor | None) -> ColumnLayout:
        """What the layers from `layer` on held, decoded columns included.

        Args:
            layer: of a decoder cut.
            logical: (B, L) padding mask over logical columns; None: no padding.
        """
        layout = None if self.layout is None else self.layout.by_decoder_layer.get(layer)
        if layout is None:
            return ColumnLayout(self.columns, self.mask(logical), self.logical)
        columns = layout.columns_until(self.logical).to(self.columns.device)
        valid = layout.mask(logical, physical_length(self.cache, layer)).to(self.columns.device)
        return ColumnLayout(columns, valid, self.logical)
