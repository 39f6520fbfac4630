"""Random: the baseline every method has to beat."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..validate import seed
from .base import Policy, register
from .types import Selection, VisualTokens


@register("random")
@dataclass
class Random(Policy):
    """A uniformly random subset.

    Drawn from the seed, the text of the row, the number of tokens and the place of the image in its
    row, so that every question has its own draw, and beams and batch sizes agree on it.

    Args:
        seed: of the draw.
    """

    seed: int = 0
    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    paper: ClassVar[str] = "baseline"
    keeps: ClassVar[str] = "a seeded random subset"

    def __post_init__(self) -> None:
        seed(self, "seed")

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        # A few dimensions tell words apart, and embeddings are looked up: the same bits in any batch.
        words = b"" if tokens.text is None else tokens.text[:, :8].detach().float().cpu().numpy().tobytes()
        draw = zlib.crc32(words, self.seed & 0xFFFFFFFF)
        mixed = ((draw * 1_000_003 + tokens.index) * 1_000_003 + len(tokens)) % 2**63
        generator = torch.Generator().manual_seed(mixed)
        picks = torch.randperm(len(tokens), generator=generator)[:n_keep]
        return Selection(picks.sort().values)
