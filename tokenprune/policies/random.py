"""Random: a baseline that every method has to beat."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..validate import seed
from .base import Policy
from .registration import register
from .types import Selection, VisualTokens


@register("random")
@dataclass
class Random(Policy):
    """A uniformly random subset: a baseline.

    The draw depends on the seed, the text of the row, the number of tokens and the number of the visual input in its
    row. Each question therefore has its own draw, and beams and batches of any size give the same one.

    Args:
        seed: of the draw, in [0, 2**64).
    """

    seed: int = 0
    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    paper: ClassVar[str] = "baseline"
    keeps: ClassVar[str] = "a seeded random subset"

    def __post_init__(self) -> None:
        seed(self, "seed")

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        # Embeddings are looked up, so their bits are the same in any batch; a few dimensions distinguish words.
        words = b"" if tokens.text is None else tokens.text[:, :8].detach().float().cpu().numpy().tobytes()
        hashed = zlib.crc32(words, self.seed & 0xFFFFFFFF)
        mixed = ((hashed * 1_000_003 + tokens.index) * 1_000_003 + len(tokens)) % 2**63
        generator = torch.Generator().manual_seed(mixed)
        picks = torch.randperm(len(tokens), generator=generator)[:n_keep]
        return Selection(picks.sort().values)
