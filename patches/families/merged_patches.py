"""What families share whose encoder takes all pictures as one sequence of patches, of which several become one token.

Patches stand in groups that become one token, or row by row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ...policies.types import Grid
from .base import EncoderValues, InputFacts, Kind, VisualShape

#: Why tokens cannot leave inside such an encoder.
NO_ENCODER_STAGE = "its tower packs all pictures into one sequence of patches that merge two by two"
#: Of the config of a model: patches that become one token along (t, h, w), of a kind of input.
Merge = Callable[[Any, Kind], Grid]


def grids_of(kind: Kind, arguments: Mapping[str, Any]) -> Any:
    """(inputs, 3) of patches along (t, h, w); None where not known."""
    # Several families compute video features through their image function, under the image's argument name.
    return arguments.get(f"{kind}_grid_thw", arguments.get("image_grid_thw"))


def square_merge(config: Any, kind: Kind) -> Grid:
    """As `vision_config.spatial_merge_size` says, frames apart."""
    size: int = config.vision_config.spatial_merge_size
    return (1, size, size)


def merged_grid(grid: Any, merge: Grid) -> Grid:
    """(T, H, W) of tokens, of a grid of patches. A single frame is merged with itself."""
    t, h, w = (int(side) for side in grid)
    return (max(1, t // merge[0]), h // merge[1], w // merge[2])


def shape(merge: Merge = square_merge) -> Callable[[InputFacts], VisualShape]:
    """One raster for each input, after its patches were merged."""

    def shape_of(facts: InputFacts) -> VisualShape:
        grids = grids_of(facts.kind, facts.arguments)
        if grids is None:
            return VisualShape()
        grid = merged_grid(grids[facts.index], merge(facts.config, facts.kind))
        return VisualShape((grid,) if grid[0] * grid[1] * grid[2] == facts.length else None)

    return shape_of


def lengths(merge: Merge = square_merge) -> Callable[[Any, Kind, Mapping[str, Any]], list[int] | None]:
    """`Family.lengths_by_grid`: the tokens of each input, after its patches were merged."""

    def lengths_of(config: Any, kind: Kind, arguments: Mapping[str, Any]) -> list[int] | None:
        grids = grids_of(kind, arguments)
        return None if grids is None else [math.prod(merged_grid(grid, merge(config, kind))) for grid in grids]

    return lengths_of


def regroup(merge: Merge = square_merge, by_row: bool = False) -> Callable[[EncoderValues], list[Tensor]]:
    """The mean over the patches that become one token.

    Args:
        merge: how many do.
        by_row: whether patches stand row by row, instead of in groups that become one token.
    """

    def regrouped(output: EncoderValues) -> list[Tensor]:
        grids = grids_of(output.kind, output.arguments)
        lengths = [int(grid.prod()) for grid in grids]
        factor = merge(output.base.config, output.kind)
        pictures = output.values.flatten(0, 1).split(lengths)
        return [mean_of_patches(each, grid, factor, by_row) for each, grid in zip(pictures, grids, strict=True)]

    return regrouped


def mean_of_patches(patches: Tensor, grid: Any, merge: Grid, by_row: bool) -> Tensor:
    """(N, C) of the N tokens of one picture or video, of its (M, C) patches.

    Args:
        patches: of a picture or video.
        grid: (t, h, w) of them.
        merge: how many become one token along each.
        by_row: as for `regroup`.
    """
    t, h, w = (int(side) for side in grid)
    frames, height, width = merge
    if by_row:
        blocks = patches.unflatten(0, (t, h // height, height, w // width, width)).mean((2, 4)).flatten(1, 2)
    else:
        blocks = patches.unflatten(0, (t, -1, height * width)).mean(2)
    if t > 1:
        blocks = blocks[: t // frames * frames].unflatten(0, (-1, frames)).mean(1)
    tokens: Tensor = blocks.flatten(0, 1)
    return tokens
