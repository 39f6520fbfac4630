"""What a KV cache held before a call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .cache import Held, Layout, layout_of, physical_length


@dataclass(frozen=True)
class Past:
    """What a cache held before this call."""

    layout: Layout | None
    logical: int
    physical: int
    columns: Tensor  # (B, physical)
    shift: Tensor  # (B,)

    @classmethod
    def of(cls, cache: Any, batch: int, device: torch.device) -> Past:
        layout = layout_of(cache)
        logical = 0 if cache is None else int(cache.get_seq_length())
        physical = physical_length(cache)
        if layout is None:
            columns = torch.arange(physical, device=device).expand(batch, -1)
            return cls(None, logical, physical, columns, torch.zeros(batch, dtype=torch.int64, device=device))
        columns = layout.columns_until(logical).to(device)
        return cls(layout, logical, physical, columns, layout.shift.to(device))

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

    def upper(self, cache: Any, layer: int, logical: Tensor | None) -> Held:
        """The same for the layers from `layer` on: columns (B, P) and their padding, decoded ones included."""
        held = None if self.layout is None else self.layout.upper.get(layer)
        if held is None:
            return Held(self.columns, self.mask(logical), self.logical)
        columns = held.columns_until(self.logical).to(self.columns.device)
        valid = held.mask(logical, physical_length(cache, layer)).to(self.columns.device)
        return Held(columns, valid, self.logical)
