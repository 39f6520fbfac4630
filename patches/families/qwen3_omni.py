"""The thinker of Qwen3-Omni: as Qwen3-VL. Audio stays. Older transformers have it as they have Qwen2.5-Omni's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from . import merged_patches, qwen2_5_omni, qwen3_vl
from .base import PrunedSequence
from .registry import register_family


def deepstack(pruned: PrunedSequence) -> dict[str, Any]:
    """As Qwen3-VL's. On transformers 4 the mask of visual columns is (B, L, D), the same along D."""
    visual = pruned.arguments.get("visual_pos_masks")
    if visual is None or visual.ndim == 2:
        return qwen3_vl.deepstack(pruned)
    columns = replace(pruned, arguments={**pruned.arguments, "visual_pos_masks": visual[..., 0]})
    changed = qwen3_vl.deepstack(columns)
    return changed | {"visual_pos_masks": changed["visual_pos_masks"][..., None].expand(-1, -1, visual.shape[-1])}


FAMILY = register_family(
    replace(
        qwen3_vl.FAMILY,
        model_types=("qwen3_omni_moe_thinker",),
        text_model=qwen2_5_omni.TEXT_MODEL,
        extras=deepstack,
        lengths_by_grid=merged_patches.lengths(),
    )
)
