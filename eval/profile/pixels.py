"""Pixels of requests for models of published shapes, and how many placeholders they have in the prompt."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from ...patches.families.llava import tile_grid
from ...patches.families.llava_next import mosaic_shape
from ...patches.families.llava_onevision import pooled_frame, scaled_mosaic


@dataclass(frozen=True)
class Request:
    """The size of a batch.

    Attributes:
        batch: rows, all of the same size.
        images: images in each.
        frames: frames of a video in each, instead of images; 0: no video.
        side: height and width of an image or frame in pixels; None: the model's default.
        text: text tokens in each.
    """

    batch: int = 1
    images: int = 1
    frames: int = 0
    side: int | None = None
    text: int = 40


def one_size(config: Any, request: Request) -> dict[str, Tensor]:
    """Pixels of a model that resizes every image to one size."""
    _no_video(config, request)
    side = config.vision_config.image_size
    if request.side not in (None, side):
        raise ValueError(f"image size {request.side}: {config.model_type} resizes every image to {side}")
    return {"pixel_values": torch.rand(request.batch * request.images, 3, side, side)}


def crops(default_side: int) -> Callable[[Any, Request], dict[str, Tensor]]:
    """Pixels of a model that sees a thumbnail and crops of an image, and frames of one size."""

    def pixels(config: Any, request: Request) -> dict[str, Tensor]:
        tile_side = config.vision_config.image_size
        if request.frames:
            _no_video(config, request, "video_token_index")
            if request.side not in (None, tile_side):
                raise ValueError(f"image size {request.side}: {config.model_type} has frames of {tile_side} pixels")
            return {"pixel_values_videos": torch.rand(request.batch, request.frames, 3, tile_side, tile_side)}
        side, count = request.side or default_side, request.batch * request.images
        pinpoint = transformers.image_processing_utils.select_best_resolution((side, side), config.image_grid_pinpoints)
        tiles = 1 + (pinpoint[0] // tile_side) * (pinpoint[1] // tile_side)
        return {
            "pixel_values": torch.rand(count, tiles, 3, tile_side, tile_side),
            "image_sizes": torch.tensor([[side, side]] * count),
        }

    return pixels


def native(config: Any, request: Request) -> dict[str, Tensor]:
    """Patches of a model that sees an image in its own size."""
    vision = config.vision_config
    merge, patch, depth = vision.spatial_merge_size, vision.patch_size, vision.temporal_patch_size
    cells = max(1, round((request.side or 672) / (patch * merge))) * merge
    frames = max(1, -(-request.frames // depth))
    if request.frames and config.model_type == "qwen3_vl":
        raise ValueError("frames: Qwen3-VL writes times between frames; profile its videos with --model")
    grid = torch.tensor([[frames, cells, cells]] * request.batch * (1 if request.frames else request.images))
    pixels = torch.rand(int(grid.prod(1).sum()), vision.in_channels * depth * patch**2)
    if request.frames:
        return {"pixel_values_videos": pixels, "video_grid_thw": grid}
    return {"pixel_values": pixels, "image_grid_thw": grid}


def tile(config: Any, request: Request, pixels: Mapping[str, Tensor]) -> int:
    """Placeholders of an image of one size."""
    return math.prod(tile_grid(config))


def thumbnail_and_mosaic(config: Any, request: Request, pixels: Mapping[str, Tensor]) -> int:
    """A thumbnail, and the crops unpadded, with a newline after each row; or the pooled frames and one newline."""
    onevision = config.model_type == "llava_onevision"
    if request.frames:
        return request.frames * math.prod(pooled_frame(config)) + 1
    size = pixels["image_sizes"][0]
    height, width = scaled_mosaic(config, size, {}) if onevision else mosaic_shape(config, size)
    return math.prod(tile_grid(config)) + height * (width + 1)


def merged_patches(config: Any, request: Request, pixels: Mapping[str, Tensor]) -> int:
    """Placeholders of an image or video whose patches are merged."""
    grid = pixels["video_grid_thw" if request.frames else "image_grid_thw"][0]
    return int(grid.prod()) // config.vision_config.spatial_merge_size**2


def _no_video(config: Any, request: Request, needs: str = "-") -> None:
    if request.frames and not hasattr(config, needs):
        raise ValueError(f"frames={request.frames}: {config.model_type} takes no videos")
