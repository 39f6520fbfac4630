"""Tiles of an image that the vision encoder saw one by one, such as the thumbnail and the crops of LLaVA-NeXT."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from ..device import to_device
from .types import Grid, Selection, VisualTokens

#: Takes a tile's rows of a (N, ...) tensor.
_Take = Callable[[Tensor], Tensor]


def tiles_of(tokens: VisualTokens) -> list[VisualTokens]:
    """The tiles of an input, each as a visual input with one raster.

    Tiles are in raster order, and so are the tokens of each. An input whose tiles are not known is its only one.
    """
    return [tokens.part(take, grid, tokens.index) for take, grid in _tiles(tokens)] or [tokens]


def in_order(tokens: VisualTokens, selection: Selection) -> Selection:
    """A selection whose indices count tile by tile, with the indices of the input.

    Tiles that stand side by side interleave in it.
    """
    taken = _tiles(tokens)
    if not taken:
        return selection
    index = torch.arange(len(tokens))
    order = torch.cat([take(index) for take, _ in taken])[selection.indices].sort()
    features = selection.features
    if features is not None:
        features = features[to_device(order.indices, features.device)]
    return Selection(order.values, features)


def _tiles(tokens: VisualTokens) -> list[tuple[_Take, Grid]]:
    """Each tile and its raster; none where tiles are not known."""
    if tokens.grids is None or tokens.tile_borders is None:
        return []
    found: list[tuple[_Take, Grid]] = []
    start = 0
    for (t, h, w), (rows, columns) in zip(tokens.grids, tokens.tile_borders, strict=True):
        for top, bottom in itertools.pairwise([0, *rows, t * h]):
            for left, right in itertools.pairwise([0, *columns, w]):
                take = functools.partial(_rectangle, start, (t * h, w), (top, bottom), (left, right))
                found.append((take, (1, bottom - top, right - left)))
        start += t * h * w
    return found


def _rectangle(
    start: int, raster: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int], tensor: Tensor
) -> Tensor:
    """(M, ...) rows of a (N, ...) tensor that stand for a rectangle of the raster whose first row is `start`."""
    h, w = raster
    whole: Tensor = tensor[start : start + h * w].unflatten(0, (h, w))
    return whole[rows[0] : rows[1], columns[0] : columns[1]].flatten(0, 1)
