"""mRoPE positions of visual tokens that survive, carried beside their embeddings.

The engine numbers a prompt before the vision tower has run, and which tokens survive is known after it.
Text needs no correction: it stands where it would in the whole prompt, whose pictures' sizes are known.
Visual tokens bring their coordinates along, as columns behind their embedding, and are numbered when they
are put into the sequence.
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
        to a place in the sequence for the position of generated tokens.
    """
    positions = torch.empty(length, dtype=torch.int64)
    place = following = 0
    for offset, kept, span in media:
        text = offset - place
        positions[place:offset] = torch.arange(following, following + text)
        following += text
        positions[offset : offset + kept] = following
        following += span
        place = offset + kept
    positions[place:] = torch.arange(following, following + length - place)
    return positions.expand(3, -1).clone(), following - place


def renumber(
    visual: Tensor, embeddings: Sequence[Tensor], positions: Tensor, computed: int
) -> tuple[list[Tensor], Tensor, int]:
    """Number the visual tokens of a chunk of a prompt by the coordinates they bring.

    Args:
        visual: (N,) bool, places of visual tokens in the prompt.
        embeddings: (n, D + 6) each, those of this chunk in order.
        positions: (3, N) of the prompt so far.
        computed: tokens of the prompt before this chunk.

    Returns:
        the embeddings without coordinates, (3, N) positions, and the difference for generated tokens.
    """
    positions = positions.clone()
    places = visual.nonzero()[:, 0]
    places = places[places >= computed].to(positions.device)
    place = torch.arange(len(visual), device=positions.device)
    text = torch.where(visual.to(positions.device), -1, place).cummax(0).values  # the text before each
    start = torch.where(text < 0, 0, positions[0, text.clamp(min=0)] + 1)
    done = 0
    for each in embeddings:
        here = places[done : done + len(each)]
        positions[:, here] = start[here] + unpack(each[:, -COLUMNS:]).T.to(positions.device)
        done += len(each)
    return [each[:, :-COLUMNS] for each in embeddings], positions, int(positions.max()) + 1 - positions.shape[1]
