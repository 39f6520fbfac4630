"""Qwen2-VL: dynamic resolution, 2 x 2 patch merger, multi-axis RoPE, images and videos."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...device import to_device
from .base import EncoderFacts, EncoderValues, Family, InputFacts, Kind, VisualShape
from .registry import register_family


def _grids(kind: Kind, arguments: Mapping[str, Any]) -> Any:
    """(inputs, 3) of patches; None where not known."""
    # Qwen3-VL computes video features through its image function, under the image's argument name.
    return arguments.get(f"{kind}_grid_thw", arguments.get("image_grid_thw"))


def merged_shape(facts: InputFacts) -> VisualShape:
    """The (t, h, w) grid of an image or video after the patch merger."""
    grids = _grids(facts.kind, facts.arguments)
    if grids is None:
        return VisualShape()
    merge = facts.config.vision_config.spatial_merge_size
    t, h, w = (int(side) for side in grids[facts.index])
    grid = (t, h // merge, w // merge)
    return VisualShape((grid,) if grid[0] * grid[1] * grid[2] == facts.length else None)


def vision_attention(base: Any, layer: Literal["feature", "last"]) -> nn.Module:
    """The last block; in a windowed tower the last one that attends to the whole picture."""
    full = getattr(base.visual, "fullatt_block_indexes", None) if layer == "feature" else None
    attention: nn.Module = base.visual.blocks[max(full) if full else -1].attn
    return attention


def _window_order(visual: Any, grids: Tensor) -> Tensor:
    """Merged tokens in the order a windowed tower has them."""
    if hasattr(visual, "get_window_index"):
        order: Tensor = visual.get_window_index(grids)[0]
        return order
    from transformers.vision_utils import get_vision_window_index

    order = get_vision_window_index(
        grids, visual.spatial_merge_size, window_size=visual.window_size, patch_size=visual.patch_size
    )[0]
    return order


def regroup(output: EncoderValues) -> list[Tensor]:
    """Patches stand in groups that the merger makes one token of: their mean; windows are undone."""
    visual = output.base.visual
    merged = output.values[0].unflatten(0, (-1, visual.spatial_merge_size**2)).mean(1)
    if hasattr(visual, "window_size"):
        order = to_device(_window_order(visual, _grids(output.kind, output.arguments)), merged.device)
        merged = torch.empty_like(merged).index_copy_(0, order, merged)
    return list(merged.split(output.lengths))


FAMILY = register_family(
    Family(
        model_types=("qwen2_vl",),
        positions="mrope",
        default_keep=0.5,
        kinds=("image", "video"),
        shape=merged_shape,
        encoder=EncoderFacts(
            attention=vision_attention,
            regroup=regroup,
            merger=lambda base: base.visual.merger,
            packed_tower=lambda base: base.visual,
        ),
        no_encoder_stage="its tower packs all pictures into one sequence of patches that merge two by two",
    )
)
