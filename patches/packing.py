"""Shrinking a batch of sequences to the columns that stay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..device import to_device


@dataclass(frozen=True)
class Packing:
    """Which columns of a batch stay, and where they go.

    Rows that keep different numbers of columns are left-padded, as decoder-only generation wants it. Padding before
    and between the columns of a row goes; padding behind its last one stays where the caller put it, so that what
    counts from the end of the sequence still counts right. The new length is the largest number held by any row.

    Attributes:
        index: (B, M) int64, the old column of each new one (any at new padding).
        valid: (B, M) bool, False at padding, old or new.
        held: (B, M) bool, False at new padding alone.
    """

    index: Tensor
    valid: Tensor
    held: Tensor

    @classmethod
    def of(cls, keep_mask: Tensor, not_padding: Tensor) -> Packing:
        """Packing of a batch.

        Args:
            keep_mask: (B, L) bool, False at columns that are pruned.
            not_padding: (B, L) bool, False at padding.
        """
        if bool(not_padding.all()):
            counts = keep_mask.sum(1)
            if bool((counts == counts[0]).all()):  # nothing to pad
                index = keep_mask.nonzero()[:, 1].view(len(keep_mask), -1)
                held = torch.ones_like(index, dtype=torch.bool)
                return cls(index, held, held)
        behind = not_padding.flip(1).cumsum(1).flip(1) == 0
        keep = keep_mask & (not_padding | behind)
        counts = keep.sum(1)
        length = int(counts.max())
        rows, columns = keep.nonzero(as_tuple=True)
        ends = counts.cumsum(0)  # of each row among all kept columns; a row's last one becomes the last column
        index = torch.zeros(len(keep), length, dtype=torch.int64, device=keep.device)
        index[rows, torch.arange(len(rows), device=keep.device) + length - ends[rows]] = columns
        held = torch.arange(length, device=keep.device) >= length - counts[:, None]
        return cls(index, held & not_padding.gather(1, index), held)

    def to(self, device: torch.device) -> Packing:
        """The same, of the host, on a device."""
        index, held = to_device(self.index, device), to_device(self.held, device)
        return Packing(index, held if self.valid is self.held else to_device(self.valid, device), held)

    def inverse_index(self, length: int) -> Tensor:
        """(B, length) int64: the new column of each old one that stays, 0 for those that go and for padding."""
        new = torch.zeros(len(self.index), length, dtype=torch.int64, device=self.index.device)
        rows, slots = self.valid.nonzero(as_tuple=True)
        new[rows, self.index[rows, slots]] = slots
        return new

    def after(self, before: Packing | None) -> Packing:
        """This packing applied to the result of another, as one."""
        return self if before is None else Packing(before.index.gather(1, self.index), self.valid, self.held)

    def take(self, tensor: Tensor) -> Tensor:
        """Gather a (B, L, ...) tensor, or a (1, L, ...) one shared by all rows, to (B, M, ...)."""
        if len(self.index) == 1:
            return tensor.index_select(1, self.index[0].to(tensor.device))
        tensor = tensor.expand(self.index.shape[0], *tensor.shape[1:])
        rows = torch.arange(tensor.shape[0], device=tensor.device)[:, None]
        return tensor[rows, self.index.to(tensor.device)]

    def labels(self, labels: Tensor) -> Tensor:
        """(B, M) of (B, L) labels; -100 at padding and at a row's first token, which padding would have to predict."""
        first = self.valid & (self.valid.cumsum(1) == 1)
        return self.take(labels).masked_fill((~self.valid | first).to(labels.device), -100)

    def scatter(self, values: Tensor, length: int, fill: float) -> Tensor:
        """(B, length, ...) of (B, M, ...) values: each at its old column, `fill` at the others."""
        rows, slots = self.held.to(values.device).nonzero(as_tuple=True)
        out = values.new_full((len(values), length, *values.shape[2:]), fill)
        return out.index_put((rows, self.index.to(values.device)[rows, slots]), values[rows, slots])

    def take_last(self, tensor: Tensor) -> Tensor:
        """Gather a (..., B or 1, L) tensor (position ids of any rank) to (..., B, M)."""
        index = self.index.to(tensor.device)
        tensor = tensor.expand(*tensor.shape[:-2], *index.shape[:1], tensor.shape[-1])
        return tensor.gather(-1, index.expand(*tensor.shape[:-1], index.shape[1]))
