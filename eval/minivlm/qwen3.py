"""The miniature Qwen3-VL: twelve thin decoder layers, deepstack, interleaved mRoPE.

A visual token covers 8 x 8 pixels (four patches of 4 x 4), as in the others. Words, chat template and patches are those
of the miniature Qwen2.5-VL.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb_vision
from transformers.utils.import_utils import is_torchvision_available

from . import qwen
from .checkpoint import rewrite, save_model
from .qwen import PLACEHOLDERS, VOCABULARY, WithoutVideos, save_processor
from .qwen_tower import MERGE, TEMPORAL, VISION_PATCH, grids, patches
from .scenes import SIZE

#: (height, width) of the images it is trained and tested on, in pixels; others work too.
SIZES = ((SIZE, SIZE),)
_PLANES = (0, 1)  # vision layers whose features are added after the first decoder layers

_ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [6, 5, 5], "mrope_interleaved": True}


def build_model(width: int = 128, vision_width: int = 96, text_layers: int = 12) -> Qwen3VLForConditionalGeneration:
    """A `Qwen3VLForConditionalGeneration` with random weights."""
    vision = dict(
        depth=3,
        hidden_size=vision_width,
        intermediate_size=vision_width * 2,
        num_heads=3,
        patch_size=VISION_PATCH,
        spatial_merge_size=MERGE,
        temporal_patch_size=TEMPORAL,
        num_position_embeddings=(SIZE // VISION_PATCH) ** 2,
        deepstack_visual_indexes=list(_PLANES),
        out_hidden_size=width,
        in_channels=3,
    )
    text = dict(
        hidden_size=width,
        intermediate_size=width * 3 // 4,
        num_hidden_layers=text_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        rope_parameters=dict(_ROPE),
        **VOCABULARY,
    )
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(vision_config=vision, text_config=text, **PLACEHOLDERS))


class PictureProcessor(WithoutVideos, Qwen3VLProcessor):
    """A Qwen3-VL processor without videos, which works without torchvision."""

    tokens: ClassVar = {
        **WithoutVideos.tokens,
        "vision_start": "<|vision_start|>",
        "vision_end": "<|vision_end|>",
    }


def build_processor() -> PictureProcessor:
    """Word-level tokenizer, Qwen2-VL image processing and the chat template."""
    return qwen.build_processor(PictureProcessor)


def load_processor(folder: Path) -> Qwen3VLProcessor:
    """The processor of a folder that `save` wrote; it takes videos if torchvision is installed."""
    return (Qwen3VLProcessor if is_torchvision_available() else PictureProcessor).from_pretrained(folder)


def save(model: Qwen3VLForConditionalGeneration, folder: Path) -> None:
    """Write model and processor to `folder`, ready for `from_pretrained`."""
    save_model(model, folder, {})
    save_processor(build_processor(), folder, "Qwen3VL")
    rewrite(folder / "config.json", _hub_rope)


def _hub_rope(settings: dict[str, Any]) -> None:
    """Add the rotary settings under the names that transformers 4 reads."""
    settings["text_config"]["rope_theta"] = _ROPE["rope_theta"]
    settings["text_config"]["rope_scaling"] = {k: v for k, v in _ROPE.items() if k != "rope_theta"}


# ---------------------------------------------------------------- training


def tower(model: Any, images: Tensor, pooled: bool = True) -> tuple[Tensor, None]:
    """Visual tokens after the merger with the deepstack planes behind them, (B, N, 3 * D), and None: there is no CLS.

    The stock tower computes attention image by image. This computes all images at once, which needs images of one size.

    Args:
        model: the Qwen3-VL.
        images: uint8 (B, H, W, 3), H and W multiples of 8.
        pooled: ignored.
    """
    from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

    visual, batch = model.model.visual, len(images)
    grid = grids(1, *images.shape[1:3])
    index, weight = get_vision_interpolation_indices_and_weights(
        grid,
        num_grid_per_side=visual.num_grid_per_side,
        mode=visual.interpolation_mode,
        align_corners=visual.interpolation_align_corners,
        spatial_merge_size=MERGE,
    )
    hidden = visual.patch_embed(patches(images)).unflatten(0, (batch, -1))
    hidden = hidden + (visual.pos_embed(index) * weight[:, :, None]).sum(1).to(hidden.dtype)
    rotary = visual.rotary_pos_emb(hidden, get_vision_position_ids(grid, MERGE))
    planes = []
    for i, block in enumerate(visual.blocks):
        hidden = hidden + _attention(block.attn, block.norm1(hidden), *rotary)
        hidden = hidden + block.mlp(block.norm2(hidden))
        if i in _PLANES:
            planes.append(visual.deepstack_merger_list[_PLANES.index(i)](hidden))
    merged = [x.view(batch, -1, x.shape[-1]) for x in (visual.merger(hidden), *planes)]
    return torch.cat(merged, -1), None


def _attention(attention: Any, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Vision attention within each row of `hidden` (B, n, D)."""
    q, k, v = attention.qkv(hidden).unflatten(-1, (3, attention.num_heads, -1)).unbind(2)
    q, k = apply_rotary_pos_emb_vision(q, k, cos, sin)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, scale=attention.scaling)
    return attention.proj(out.transpose(1, 2).flatten(2))


#: Those of the miniature Qwen2.5-VL. `project` gets visual tokens with their deepstack planes.
IDS, END, framing, positions, layers, tower_parameters, project = (
    qwen.IDS,
    qwen.END,
    qwen.framing,
    qwen.positions,
    qwen.layers,
    qwen.tower_parameters,
    qwen.project,
)
