"""Patches that leave inside a vision encoder that takes all inputs as one sequence, and come back frame by frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .restored_tokens import RestoredTokens


@dataclass(frozen=True)
class RestoredFrames:
    """What is known of the pictures, and of the frames of videos, of one sequence when patches have left.

    Attributes:
        frames: of each in the order of the sequence, as a batch of one.
        kept: (K,) int64 ascending, patches of the sequence that stay.
    """

    frames: tuple[RestoredTokens, ...]
    kept: Tensor

    @classmethod
    def of(cls, hidden: Tensor, kept: Sequence[Tensor], sizes: Sequence[int], neighbours: int) -> RestoredFrames:
        """All but some leave now.

        Args:
            hidden: (N, D) states of all.
            kept: of each frame, (K_f,) int64 ascending, patches of it that stay, one or more.
            sizes: patches of each frame.
            neighbours: of the same frame, how many of those that stay each of the others is rebuilt from, at most.
        """
        parts = zip(hidden.split(list(sizes)), kept, strict=True)
        frames = tuple(RestoredTokens.of(part[None], index[None], neighbours, 0) for part, index in parts)
        firsts = [sum(sizes[:i]) for i in range(len(sizes))]
        return cls(frames, torch.cat([index + first for index, first in zip(kept, firsts, strict=True)]))

    def to(self, device: torch.device) -> RestoredFrames:
        """The same on another device: layers of an encoder may be on several."""
        if self.kept.device == device:
            return self
        return RestoredFrames(tuple(each.to(device) for each in self.frames), self.kept.to(device))

    @property
    def kept_states(self) -> Tensor:
        """(K, D), hidden states of the patches that stay when the others left."""
        return torch.cat([each.kept_states[0] for each in self.frames])

    def take(self, values: Tensor) -> Tensor:
        """(K, ...), rows of the patches that stay, of (N, ...)."""
        return values.index_select(0, self.kept)

    def whole(self, states: Tensor) -> Tensor:
        """(N, D) of (K, D) states that the kept ones have now: the others are rebuilt."""
        return self._by_frame(RestoredTokens.whole, states)

    def filled(self, values: Tensor) -> Tensor:
        """(1, N, C) of (1, K, C) values of the kept ones: the others get the mean of their nearest.

        What is not of so many patches is returned as it is.
        """
        return values if values.shape[1] != len(self.kept) else self._by_frame(RestoredTokens.filled, values[0])[None]

    def zeros_beside(self, states: Tensor) -> Tensor:
        """(N, D) of (K, D) states of the kept ones, with zeros for the others."""
        return self._by_frame(RestoredTokens.zeros_beside, states)

    def _by_frame(self, put_back: Callable[[RestoredTokens, Tensor], Tensor], values: Tensor) -> Tensor:
        parts = values.split([each.kept.shape[1] for each in self.frames])
        return torch.cat([put_back(each, part[None])[0] for each, part in zip(self.frames, parts, strict=True)])
