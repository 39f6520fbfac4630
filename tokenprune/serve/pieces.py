"""The visual inputs that a picture or video of a request is made of, and what stays of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..device import index_rows
from ..patches.families.base import Kind, VisualShape
from ..policies.types import Selection, VisualTokens


@dataclass
class Piece:
    """One visual input: a picture, a tile that is one for its family, or a video.

    Attributes:
        item: which of the engine's pictures or videos it belongs to.
        start, length: its tokens among those of the item.
        shape: their layout.
        n_keep: how many stay.
        tokens: what the policy sees of it; None where all of it stays.
        spare: newline tokens that stay, because the budget is larger than the rest.
    """

    item: int
    start: int
    length: int
    shape: VisualShape
    n_keep: int
    tokens: VisualTokens | None = None
    spare: int = 0

    def candidates(self) -> Tensor:
        """Indices in the piece of what a policy may choose: all but newlines, which leave first."""
        candidate = torch.ones(self.length, dtype=torch.bool)
        candidate[list(self.shape.separators)] = False
        return candidate.nonzero()[:, 0]

    def offer(self, rows: Tensor, kind: Kind, fields: Mapping[str, Any]) -> None:
        """Have the policy choose.

        Args:
            rows: (N, D) embeddings of the item.
            kind: image or video.
            fields: further ones of `VisualTokens`.
        """
        candidates = self.candidates()
        self.spare = max(0, self.n_keep - len(candidates))
        self.tokens = VisualTokens(
            features=index_rows(rows[self.start : self.start + self.length], candidates)
            if self.shape.separators
            else rows[self.start : self.start + self.length],
            grids=self.shape.grids,
            tile_borders=self.shape.tile_borders,
            kind=kind,
            **fields,
        )

    def kept(self, chosen: Selection | None, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """What stays.

        Args:
            chosen: the policy's answer; None: it was not asked.
            rows: (N, D) embeddings of the item.

        Returns:
            indices in the item, (K,) ascending, and the new embeddings of these, (K, D); None: unchanged.
        """
        if chosen is None:
            return torch.arange(self.start, self.start + self.length), None
        newlines = torch.tensor(self.shape.separators[: self.spare], dtype=torch.int64)
        indices, order = torch.cat([self.candidates()[chosen.indices.cpu()], newlines]).sort()
        features = chosen.features
        if features is not None and len(newlines):
            own = rows[(newlines + self.start).to(rows.device)].to(features)
            features = torch.cat([features, own])[order.to(rows.device)]
        return indices + self.start, features
