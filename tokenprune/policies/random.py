"""Random: the baseline every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..visual import Selection, VisualTokens
from .base import Policy, register


@register("random")
@dataclass
class Random(Policy):
    """A uniformly random subset.

    Drawn from the seed, the number of tokens and the place of the image in its row alone, so that
    beams, batch sizes and devices agree on it.

    Args:
        seed: of the draw.
    """

    seed: int = 0
    paper: ClassVar[str] = "baseline"

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + tokens.index) * 1_000_003 + len(tokens))
        picks = torch.randperm(len(tokens), generator=generator)[:n_keep]
        return Selection(picks.sort().values.to(tokens.features.device))
