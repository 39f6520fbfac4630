"""What a KV cache held before a call."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .cache import ColumnLayout, Layout, layout_of, physical_length


@dataclass
class Past:
    """What a cache held before this call.

    It is to be read before the cache grows. Lengths are worked out when they are asked for: those of a static cache are
    on the device, which would be waited for, and a compiler cannot follow there.

    Attributes:
        layout: of a cache that was pruned before.
        batch: rows, B.
        device: of this call's tokens.
        cache: the cache itself, or None.
    """

    layout: Layout | None
    batch: int
    device: torch.device
    cache: Any
    # No `functools.cached_property`, whose lock (until Python 3.12) a compiler cannot follow.
    _logical: int | None = field(default=None, init=False)
    _physical: int | None = field(default=None, init=False)

    @classmethod
    def of(cls, cache: Any, batch: int, device: torch.device) -> Past:
        """What a cache (or None) holds for `batch` rows."""
        return cls(layout_of(cache), batch, device, cache)

    @property
    def logical(self) -> int:
        """Columns that the caller has fed."""
        if self._logical is None:
            self._logical = 0 if self.cache is None else int(self.cache.get_seq_length())
        return self._logical

    @property
    def physical(self) -> int:
        """Columns that the layers below all decoder cuts hold."""
        if self._physical is None:
            self._physical = physical_length(self.cache)
        return self._physical

    def after(self, length: int, static: int | None) -> int:
        """Columns of masks after a call of `length` columns: all of a static cache with so many, else those held."""
        return self.physical + length if static is None else static

    @functools.cached_property
    def columns(self) -> Tensor:
        """(B, physical) int64, the logical column of each column that the layers below all decoder cuts hold."""
        if self.layout is None:
            return torch.arange(self.physical, device=self.device).expand(self.batch, -1)
        return self.layout.columns_until(self.logical).to(self.device)

    @property
    def shift(self) -> Tensor:
        """(B,) int64, what compact positions have moved left by."""
        if self.layout is None:
            return torch.zeros(self.batch, dtype=torch.int64, device=self.device)
        return self.layout.shift.to(self.device)

    @property
    def shifted(self) -> bool:
        """Whether any position has moved."""
        return self.layout is not None and self.layout.shifted

    def mask(self, logical: Tensor | None) -> Tensor:
        """Padding mask over the columns held, (B, physical) bool."""
        if self.layout is not None:
            return self.layout.mask(logical, self.physical).to(self.device)
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
        columns = layout.columns_until(self.logical).to(self.device)
        valid = layout.mask(logical, physical_length(self.cache, layer)).to(self.device)
        return ColumnLayout(columns, valid, self.logical)
