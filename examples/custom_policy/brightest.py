"""A policy outside tokenprune: the tokens of the largest norm, one from every block of the sequence first.

pip install ./examples/custom_policy
tokenprune bench --policy brightest --keep 0.1
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tokenprune import Policy, Selection, VisualTokens, register


@register("brightest")
@dataclass
class Brightest(Policy):
    """Tokens of the largest norm.

    1. The sequence is cut into blocks of `blocks` tokens. The token of the largest norm in each block comes first.
    2. The rest of the budget goes to the tokens of the largest norm among the others.

    Args:
        blocks: tokens in a block, >= 1.
    """

    blocks: int = 8
    keeps: ClassVar[str] = "tokens of the largest norm, from everywhere"
    paper: ClassVar[str] = "an example"

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise ValueError(f"blocks={self.blocks!r} must be >= 1")

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        norm = tokens.features.float().norm(dim=-1)
        block = torch.arange(len(tokens), device=norm.device) // self.blocks
        best = torch.full((int(block[-1]) + 1,), -torch.inf, device=norm.device)
        best = best.scatter_reduce(0, block, norm, "amax")
        # The best of each block gets a higher score than all others.
        score = torch.where(norm == best[block], norm + norm.max() + 1, norm)
        return Selection(score.topk(n_keep).indices.sort().values)
