"""mRoPE positions of visual tokens that survive, carried beside their embeddings.

The engine numbers a prompt before the vision tower has run, and which tokens survive is known after it.
Text needs no correction: it stands where it would in the whole prompt, whose pictures' sizes are known.
Visual tokens are numbered by where their picture begins. They bring their coordinates in it along, as
columns behind their embedding, and the model adds those to the positions of the step they are part of.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

#: Two digits for each of t, h, w: every integer up to 256 is exact in bfloat16, the coarsest dtype.
BASE, COLUMNS = 256, 6


def pack(coordinates: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, 3) int64 coordinates below 65,536, as (N, 6) columns of `dtype`."""
    return torch.stack([coordinates // BASE, coordinates % BASE], -1).flatten(1).to(dtype)


def unpack(columns: Tensor) -> Tensor:
    """(N, 3) int64 coordinates out of (N, 6) columns."""
    high, low = columns.long().view(-1, 3, 2).unbind(-1)
    return high * BASE + low


def number(length: int, media: Iterable[tuple[int, int, int]]) -> tuple[Tensor, int]:
    """Positions of a prompt whose visual tokens are still to come.

    Args:
        length: of the prompt, pruned.
        media: (offset, kept, span) of each picture or frame in order; its text goes on `span` further, as
            it would behind the whole of it. `kept` may be 0.

    Returns:
        (3, length) int64, where visual tokens have the position their picture begins at; and what to add
        to a column of the sequence for the position of generated tokens.
    """
    positions = torch.empty(length, dtype=torch.int64)
    column = following = 0
    for offset, kept, span in media:
        text = offset - column
        positions[column:offset] = torch.arange(following, following + text)
        following += text
        positions[offset : offset + kept] = following
        following += span
        column = offset + kept
    positions[column:] = torch.arange(following, following + length - column)
    return positions.expand(3, -1).clone(), following - column


class Offsets:
    """How far each visual token of a step stands from where its picture begins.

    A buffer that lives as long as the model, written before every step, so that a captured graph reads it too.

    Args:
        length: most tokens of a step.
        device: where the model is.
    """

    def __init__(self, length: int, device: torch.device):
        self.buffer = torch.zeros(3, length, dtype=torch.int64, device=device)

    def split(self, embeddings: Sequence[Tensor], visual: Tensor | None) -> list[Tensor]:
        """Take the columns off a step's embeddings, (n, D + 6) each, and keep them for its visual tokens.

        Args:
            embeddings: in order; none in a step without visual tokens.
            visual: (M,) bool, where they go among the step's tokens.
        """
        self.buffer.zero_()
        if embeddings:
            assert visual is not None
            columns = visual.to(self.buffer.device).nonzero()[:, 0]
            self.buffer[:, columns] = unpack(torch.cat([each[:, -COLUMNS:] for each in embeddings])).T
        return [each[:, :-COLUMNS] for each in embeddings]

    def add(self, positions: Tensor) -> Tensor:
        """(3, M) positions, those of visual tokens corrected."""
        return positions + self.buffer[:, : positions.shape[-1]]
