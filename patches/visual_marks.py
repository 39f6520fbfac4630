"""Which columns of a KV cache hold pictures of turns so far, for what becomes of them in later turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .visual_inputs import VisualInput


@dataclass(frozen=True)
class VisualMarks:
    """Visual inputs in a talk, by logical column.

    Attributes:
        inputs: (B, L) int64, the number of the visual input whose token a column is, from 1; 0 for all else.
        sizes: by number, how many tokens the input has, those that were pruned included.
    """

    inputs: Tensor
    sizes: dict[int, int]

    @classmethod
    def none(cls, batch: int, device: torch.device) -> VisualMarks:
        """Of a talk without columns."""
        return cls(torch.zeros(batch, 0, dtype=torch.int64, device=device), {})

    def until(self, length: int) -> VisualMarks:
        """With as many columns: the last ones are forgotten, or columns without a picture are added."""
        more = length - self.inputs.shape[1]
        inputs = self.inputs[:, :length]
        return VisualMarks(torch.nn.functional.pad(inputs, (0, max(0, more))), self.sizes)

    def followed_by(self, rows: Sequence[Sequence[VisualInput]], length: int) -> VisualMarks:
        """With `length` more columns, in which the rows have visual inputs."""
        new = torch.zeros(len(rows), length, dtype=torch.int64)
        sizes, first = dict(self.sizes), 1 + max(self.sizes, default=0)
        for number, each in enumerate((each for row in rows for each in row), first):
            new[each.row, each.columns] = number
            sizes[number] = len(each.columns)
        return VisualMarks(torch.cat([self.inputs, new.to(self.inputs.device)], 1), sizes)

    def select_rows(self, rows: Tensor) -> VisualMarks:
        """Of other rows of the batch, (B',) int64."""
        return VisualMarks(self.inputs[rows.to(self.inputs.device)], self.sizes)
