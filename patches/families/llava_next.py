"""LLaVA-NeXT (1.6): a thumbnail, then a mosaic of crops, unpadded, with a newline token per row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import llava
from .base import EncoderValues, Family, InputFacts, VisualShape
from .llava import tile_grid
from .registry import register_family

#: Of an image's size in pixels: (H, W) of its mosaic.
MosaicSize = Callable[[Any], tuple[int, int]]


def mosaic_shape(config: Any, image_size: Any) -> tuple[int, int]:
    """(H, W) patches of the crops after unpadding, newline tokens not counted."""
    from transformers.models.llava_next.modeling_llava_next import unpad_image

    _, h, w = tile_grid(config)
    rows, columns = _tiles(config, image_size)
    _, height, width = unpad_image(torch.empty(1, rows * h, columns * w, device="meta"), image_size).shape
    return height, width


def _tiles(config: Any, image_size: Any) -> tuple[int, int]:
    """Rows and columns of crops that an image is cut into."""
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    side = config.vision_config.image_size
    shape: tuple[int, int] = get_anyres_image_grid_shape(image_size, config.image_grid_pinpoints, side)
    return shape


def anyres_shape(
    config: Any, length: int, mosaic: tuple[int, int] | None, tiles: tuple[int, int] | None = None
) -> VisualShape:
    """Layout of a thumbnail, and of a mosaic with a newline after each row; or of a thumbnail with one newline.

    Args:
        config: of the model.
        length: placeholders of the image.
        mosaic: (H, W) of its mosaic; None if not known.
        tiles: rows and columns of crops that an unscaled mosaic is made of; None if not known.
    """
    thumbnail = tile_grid(config)
    tile = thumbnail[1] * thumbnail[2]
    if length == tile + 1:
        return VisualShape((thumbnail,), (tile,))
    if mosaic is None or length != tile + mosaic[0] * (mosaic[1] + 1):
        return VisualShape()
    height, width = mosaic
    newlines = tuple(tile + y * (width + 1) + width for y in range(height))
    if not height * width:  # of a very narrow picture, unpadding leaves nothing but newlines
        return VisualShape((thumbnail,), newlines)
    borders = None
    if tiles is not None:
        rows, columns = (
            _borders(side, size, count) for side, size, count in zip(mosaic, thumbnail[1:], tiles, strict=True)
        )
        borders = (((), ()), (rows, columns))
    return VisualShape((thumbnail, (1, height, width)), newlines, borders)


def _borders(side: int, tile: int, count: int) -> tuple[int, ...]:
    """Where along a side of an unpadded mosaic another tile begins; as much is cut away at both ends."""
    cut = (count * tile - side) // 2
    return tuple(border for i in range(1, count) if 0 < (border := i * tile - cut) < side)


def shape(facts: InputFacts) -> VisualShape:
    """A thumbnail, and a mosaic where the size of the image is known."""
    sizes = facts.arguments.get("image_sizes")
    if sizes is None:
        return anyres_shape(facts.config, facts.length, None)
    size = sizes[facts.index]
    return anyres_shape(facts.config, facts.length, mosaic_shape(facts.config, size), _tiles(facts.config, size))


def regroup_images(output: EncoderValues, scaled: MosaicSize | None = None) -> list[Tensor]:
    """Values of images, tile by tile in the encoder, each as (N, C) in the order of its candidates.

    Args:
        output: of the encoder.
        scaled: size that the model scales a mosaic to, if it does.
    """
    out, tiles = [], output.values
    for length, size in zip(output.lengths, output.arguments["image_sizes"], strict=True):
        value, used = _regroup_tiles(output.base.config, tiles, length, size)
        if scaled is not None and len(value) > 1 and value[1].shape[1:] != scaled(size):
            value[1] = F.interpolate(value[1][None], scaled(size), mode="bilinear")[0]
        out.append(torch.cat([value[0], *(mosaic.flatten(1).T for mosaic in value[1:])]))
        tiles = tiles[used:]
    return out


def _regroup_tiles(config: Any, tiles: Tensor, length: int, image_size: Any) -> tuple[list[Tensor], int]:
    """Values of one image: (n, C) of its thumbnail and, if it has one, (C, H, W) of its mosaic; tiles they took.

    Args:
        config: of the model.
        tiles: (tiles left, tile tokens, C), this image's first.
        length: placeholders of the image.
        image_size: (height, width) in pixels.
    """
    _, h, w = tile_grid(config)
    if length == h * w + 1:
        return [tiles[0]], 1
    from transformers.models.llava_next.modeling_llava_next import unpad_image

    rows, columns = _tiles(config, image_size)
    mosaic = tiles[1 : 1 + rows * columns].view(rows, columns, h, w, -1).permute(4, 0, 2, 1, 3)
    return [tiles[0], unpad_image(mosaic.flatten(1, 2).flatten(2, 3), image_size)], 1 + rows * columns


def regroup(output: EncoderValues) -> list[Tensor]:
    """Thumbnail and mosaic of each image."""
    return regroup_images(output)


ENCODER = replace(llava.ENCODER, regroup=regroup)
FAMILY = register_family(
    Family(
        model_types=("llava_next",),
        shape=shape,
        encoder=ENCODER,
        usual_towers=llava.TOWERS,
        readable_towers=llava.READABLE_TOWERS,
    )
)
