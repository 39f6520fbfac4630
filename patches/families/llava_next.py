"""LLaVA-NeXT (1.6): a thumbnail, then a mosaic of crops, unpadded, with a newline token per row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

from . import llava
from .base import Family, Kind, VisualShape, register_family
from .llava import tile_grid


def mosaic_shape(config: Any, image_size: Any) -> tuple[int, int]:
    """(H, W) patches of the crops after unpadding, newline tokens not counted."""
    _, h, w = tile_grid(config)
    rows, columns = get_anyres_image_grid_shape(
        image_size, config.image_grid_pinpoints, config.vision_config.image_size
    )
    _, height, width = unpad_image(torch.empty(1, rows * h, columns * w, device="meta"), image_size).shape
    return height, width


def anyres_shape(config: Any, length: int, mosaic: tuple[int, int] | None) -> VisualShape:
    """Layout of a thumbnail, an optional mosaic with a newline after each row, or the plain thumbnail
    with one newline."""
    thumbnail = tile_grid(config)
    tile = thumbnail[1] * thumbnail[2]
    if length == tile + 1:
        return VisualShape((thumbnail,), (tile,))
    if mosaic is None or length != tile + mosaic[0] * (mosaic[1] + 1):
        return VisualShape()
    height, width = mosaic
    newlines = tuple(tile + y * (width + 1) + width for y in range(height))
    # Of a very narrow picture, unpadding leaves nothing but newlines.
    return VisualShape((thumbnail, (1, height, width)) if height * width else (thumbnail,), newlines)


def shape(config: Any, kind: Kind, length: int, inputs: Mapping[str, Any], i: int) -> VisualShape:
    sizes = inputs.get("image_sizes")
    return anyres_shape(config, length, None if sizes is None else mosaic_shape(config, sizes[i]))


def regroup_tiles(
    base: Any, tiles: Tensor, length: int, image_size: Any, scaled: tuple[int, int] | None = None
) -> tuple[Tensor, int]:
    """Values of one image in the order of its candidates, (N, C), and how many tiles they took.

    Args:
        tiles: (tiles left, tile tokens, C), this image's first.
        length: placeholders of the image.
        image_size: (height, width) in pixels.
        scaled: (H, W) the model scales the mosaic to, if it does.
    """
    _, h, w = tile_grid(base.config)
    if length == h * w + 1:
        return tiles[0], 1
    rows, columns = get_anyres_image_grid_shape(
        image_size, base.config.image_grid_pinpoints, base.config.vision_config.image_size
    )
    mosaic = tiles[1 : 1 + rows * columns].view(rows, columns, h, w, -1).permute(4, 0, 2, 1, 3)
    mosaic = unpad_image(mosaic.flatten(1, 2).flatten(2, 3), image_size)
    if scaled is not None and mosaic.shape[1:] != scaled:
        mosaic = F.interpolate(mosaic[None], scaled, mode="bilinear")[0]
    return torch.cat([tiles[0], mosaic.flatten(1).T]), 1 + rows * columns


def regroup_images(
    base: Any,
    values: Tensor,
    lengths: list[int],
    image_sizes: Any,
    scaled: Callable[[Any], tuple[int, int]] | None = None,
) -> list[Tensor]:
    """Values of all images, tile by tile, by image; `scaled` gives what a mosaic is scaled to."""
    out = []
    for length, size in zip(lengths, image_sizes, strict=True):
        value, used = regroup_tiles(base, values, length, size, None if scaled is None else scaled(size))
        out.append(value)
        values = values[used:]
    return out


def regroup(base: Any, kind: Kind, values: Tensor, lengths: list[int], inputs: Mapping[str, Any]) -> list[Tensor]:
    return regroup_images(base, values, lengths, inputs["image_sizes"])


ENCODER = replace(llava.ENCODER, regroup=regroup)
FAMILY = register_family(Family(model_types=("llava_next",), shape=shape, encoder=ENCODER, usual_towers=llava.TOWERS))
