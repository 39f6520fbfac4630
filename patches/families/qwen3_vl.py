"""Qwen3-VL and Cosmos 3 Omni: as Qwen2-VL, with deepstack planes.

The planes are added to the visual columns of early layers. A video's placeholders come in one run per frame, with
timestamps between the runs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from . import qwen2_vl
from .base import PrunedSequence
from .registry import register_family


def deepstack(pruned: PrunedSequence) -> dict[str, Any]:
    """The planes hold one row per visual column of the batch, row-major: keep those that stay."""
    visual = pruned.arguments.get("visual_pos_masks")
    if visual is None:
        return {}
    planes = pruned.arguments["deepstack_visual_embeds"]
    kept = pruned.keep[visual].nonzero()[:, 0]
    return {
        "visual_pos_masks": pruned.packing.take(visual) & pruned.packing.valid,
        "deepstack_visual_embeds": [plane[kept.to(plane.device)] for plane in planes],
    }


FAMILY = register_family(
    replace(
        qwen2_vl.FAMILY,
        model_types=("qwen3_vl", "qwen3_vl_moe", "cosmos3_omni"),
        extras=deepstack,
        # the first layers add a plane to every visual column
        first_decoder_cut=lambda config: max(1, len(config.vision_config.deepstack_visual_indexes)),
    )
)
