"""Models whose pictures are cut into square tiles of one size, each of which is a visual input of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..patches.families.base import Kind
from .processing import Cut, PruningProcessor
from .pruned import Part, PrunedModel, chunks


class TileProcessor(PruningProcessor):
    """Mixed in before a stock processor: a budget is of each tile, as in transformers."""

    def tile_tokens(self) -> int:
        """Placeholders of a tile."""
        raise NotImplementedError

    def counts(self, lengths: list[int], cut: Cut) -> list[int]:
        assert cut.budget is not None
        return [sum(cut.budget.count(tile) for tile in tiles(length, self.tile_tokens())) for length in lengths]


class PrunedTiles(PrunedModel):
    """Mixed in before a stock model."""

    #: Placeholders of a tile.
    tile_tokens: int

    def tile_parts(self, kind: Kind, kwargs: Mapping[str, Any], names: tuple[str, str]) -> Iterator[Part]:
        """Pictures or videos in parts of at most `most_at_once` tokens, or of one.

        Args:
            kind: image or video.
            kwargs: of the stock model.
            names: of the arguments with the pixels of all tiles and with the number of tiles of each input.
        """
        of_pixels, of_counts = names
        pixels, counts = kwargs[of_pixels], kwargs[of_counts].tolist()
        others = {name: value for name, value in kwargs.items() if name.endswith("_token_id")}
        for start, stop in chunks([count * self.tile_tokens for count in counts], self.most_at_once):
            first, last = sum(counts[:start]), sum(counts[:stop])
            arguments = {of_pixels: pixels[first:last], of_counts: kwargs[of_counts][start:stop]}
            yield Part(kind, stop - start, {**arguments, **others}, {})

    def lengths(self, part: Part, item: int, length: int) -> list[int]:
        return tiles(length, self.tile_tokens)


def tiles(length: int, tile: int) -> list[int]:
    """`length` tokens in tiles; as one piece where they are no whole tiles."""
    return [length] if length % tile else [tile] * (length // tile)
