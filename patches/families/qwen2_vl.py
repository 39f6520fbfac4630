"""Qwen2-VL: dynamic resolution, 2 x 2 patch merger, multi-axis RoPE, images and videos."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...device import to_device
from . import merged_patches
from .base import EncoderFacts, EncoderValues, Family
from .registry import register_family


def encoder_facts(tower: str = "visual") -> EncoderFacts:
    """Facts about the vision encoder, which is at this path in the base model."""

    def vision_attention(base: Any, layer: Literal["feature", "last"]) -> nn.Module:
        """The last block; in a windowed tower the last one that attends to the whole picture."""
        visual = base.get_submodule(tower)
        full = getattr(visual, "fullatt_block_indexes", None) if layer == "feature" else None
        attention: nn.Module = visual.blocks[max(full) if full else -1].attn
        return attention

    def regrouped(output: EncoderValues) -> list[Tensor]:
        return regroup(output, output.base.get_submodule(tower))

    return EncoderFacts(
        attention=vision_attention, regroup=regrouped, merger=lambda base: base.get_submodule(f"{tower}.merger")
    )


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


def regroup(output: EncoderValues, visual: Any) -> list[Tensor]:
    """Patches stand in groups that the merger makes one token of: their mean; windows are undone."""
    merged = output.values[0].unflatten(0, (-1, visual.spatial_merge_size**2)).mean(1)
    if hasattr(visual, "window_size"):
        order = to_device(_window_order(visual, merged_patches.grids_of(output.kind, output.arguments)), merged.device)
        merged = torch.empty_like(merged).index_copy_(0, order, merged)
    return list(merged.split(output.lengths))


FAMILY = register_family(
    Family(
        model_types=("qwen2_vl",),
        positions="mrope",
        default_keep=0.5,
        kinds=("image", "video"),
        shape=merged_patches.shape(),
        encoder=replace(encoder_facts(), packed_tower=lambda base: base.visual),
        no_encoder_stage=merged_patches.NO_ENCODER_STAGE,
    )
)
