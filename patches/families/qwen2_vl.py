"""Qwen2-VL: dynamic resolution, 2 x 2 patch merger, multi-axis RoPE, images and videos."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...device import to_device
from ..encoder_capture import Encoder
from .base import Family, Kind, VisualShape, register_family


def merged_shape(config: Any, kind: Kind, length: int, inputs: Mapping[str, Any], i: int) -> VisualShape:
    """The (t, h, w) grid of an image or video after the patch merger."""
    # Qwen3-VL computes video features through its image function, under the image's argument name.
    grids = inputs.get(f"{kind}_grid_thw", inputs.get("image_grid_thw"))
    if grids is None:
        return VisualShape()
    merge = config.vision_config.spatial_merge_size
    t, h, w = (int(side) for side in grids[i])
    grid = (t, h // merge, w // merge)
    return VisualShape((grid,) if grid[0] * grid[1] * grid[2] == length else None)


def vision_attention(base: Any, layer: Literal["feature", "last"]) -> nn.Module:
    """The last block; in a windowed tower the last one that attends to the whole picture."""
    full = getattr(base.visual, "fullatt_block_indexes", None) if layer == "feature" else None
    return base.visual.blocks[max(full) if full else -1].attn


def _window_order(visual: Any, grids: Tensor) -> Tensor:
    """Merged tokens in the order a windowed tower has them."""
    if hasattr(visual, "get_window_index"):
        return visual.get_window_index(grids)[0]
    from transformers.vision_utils import get_vision_window_index

    return get_vision_window_index(
        grids, visual.spatial_merge_size, window_size=visual.window_size, patch_size=visual.patch_size
    )[0]


def regroup(base: Any, kind: Kind, values: Tensor, lengths: list[int], inputs: Mapping[str, Any]) -> list[Tensor]:
    """Patches stand in groups that the merger makes one token of: their mean; windows are undone."""
    merged = values[0].unflatten(0, (-1, base.visual.spatial_merge_size**2)).mean(1)
    if hasattr(base.visual, "window_size"):
        grids = inputs.get(f"{kind}_grid_thw", inputs.get("image_grid_thw"))
        order = to_device(_window_order(base.visual, grids), merged.device)
        merged = torch.empty_like(merged).index_copy_(0, order, merged)
    return list(merged.split(lengths))


ENCODER = Encoder(vision_attention, lambda base: False, regroup)
FAMILY = register_family(
    Family(
        model_types=("qwen2_vl",),
        positions="mrope",
        default_keep=0.5,
        kinds=("image", "video"),
        shape=merged_shape,
        encoder=ENCODER,
        tower_stage="its tower packs all pictures into one sequence of patches that merge two by two",
    )
)
