"""Gemma 4: pictures of any raster, pooled k x k; sliding-window layers; inputs of each layer by token.

Of the larger models, pictures attend to themselves both ways in sliding-window layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...device import to_device
from ..cache import cache_name
from .base import EncoderFacts, EncoderValues, Family, InputFacts, MaskInputs, PrunedSequence, VisualShape
from .registry import register_family
from .tower_layers import last_attention

#: (M, 2) x and y of the patches of a picture or frame, -1 at padding.
Positions = Tensor


def _frames(facts: InputFacts | EncoderValues) -> list[list[Positions]] | None:
    """Patch positions of each frame of each input, an image being one frame; None where not known."""
    positions = facts.arguments.get(f"{facts.kind}_position_ids")
    if positions is None:
        return None
    if positions.ndim == 4:  # (videos, frames, M, 2), before transformers 5.24
        return [list(video) for video in positions.cpu()]
    frames = list(positions.cpu())
    counts = [1] * len(frames) if facts.kind == "image" else facts.arguments["num_frames_per_video"].tolist()
    return [frames[sum(counts[:i]) : sum(counts[: i + 1])] for i in range(len(counts))]


def _pooled(positions: Positions, kernel: int) -> tuple[int, int]:
    """(H, W) of the tokens of a frame."""
    width, height = (int(side) + 1 for side in positions.amax(0))
    return height // kernel, width // kernel


def shape(facts: InputFacts) -> VisualShape:
    """One raster for each input, a video being a raster of its frames."""
    return pooled_shape(facts, facts.config.vision_config.pooling_kernel_size)


def pooled_shape(facts: InputFacts, kernel: int) -> VisualShape:
    """The same, of patches that are pooled kernel x kernel."""
    inputs = _frames(facts)
    if inputs is None:
        return VisualShape()
    frames = inputs[facts.index]
    height, width = _pooled(frames[0], kernel)
    grid = (len(frames), height, width)
    return VisualShape((grid,) if len(frames) * height * width == facts.length else None)


def regroup(output: EncoderValues) -> list[Tensor]:
    """The mean over the patches that are pooled, wherever they stand."""
    kernel, pieces, inputs = output.base.config.vision_config.pooling_kernel_size, iter(output.values), _frames(output)
    assert inputs is not None
    return [torch.cat([_mean(next(pieces), positions, kernel) for positions in frames]) for frames in inputs]


def _mean(values: Tensor, positions: Positions, kernel: int) -> Tensor:
    """(N, C) by token of a frame, of (M, C) by patch."""
    height, width = _pooled(positions, kernel)
    real = (positions >= 0).all(1)
    x, y = (positions[real] // kernel).unbind(1)
    token = to_device(x + width * y, values.device)
    mean = values.new_zeros(height * width, values.shape[1])
    return mean.index_add_(0, token, values[to_device(real, values.device)]) / kernel**2


def per_layer_inputs(pruned: PrunedSequence) -> dict[str, Any]:
    """Inputs of each layer by token, (B, L, layers, d), of the smaller models."""
    inputs = pruned.arguments.get("per_layer_inputs")
    return {} if inputs is None else {"per_layer_inputs": pruned.packing.take(inputs)}


def block_ids(pruned: MaskInputs) -> Tensor | None:
    """(B, M) which picture a column is of, -1 for text and padding; None where pictures are read as text is."""
    types = pruned.arguments.get("mm_token_type_ids")
    if types is None or pruned.base.config.get_text_config().use_bidirectional_attention != "vision":
        return None
    from transformers.models.gemma4.modeling_gemma4 import get_block_sequence_ids_for_mask

    ids: Tensor = get_block_sequence_ids_for_mask(types, device=pruned.embeds.device)
    return pruned.packing.take(ids).masked_fill(~pruned.packing.valid, -1)


def masks(pruned: MaskInputs) -> Any:
    """As the model builds them, for the columns that stay; a padding mask, where its text model builds its own."""
    from transformers.models.gemma4.modeling_gemma4 import create_masks_for_vision_model

    return masks_by(create_masks_for_vision_model, pruned)


def masks_by(build: Callable[..., Any], pruned: MaskInputs) -> Any:
    """The same, by the function of transformers that the model calls."""
    ids = block_ids(pruned)
    if ids is None:
        return pruned.valid
    pruned.refuse_past()
    return build(
        block_sequence_ids=ids,
        config=pruned.base.config.get_text_config(),
        inputs_embeds=pruned.embeds,
        attention_mask=pruned.valid,
        position_ids=None,
        **{cache_name(): pruned.cache},
    )


FAMILY = register_family(
    Family(
        model_types=("gemma4",),
        default_keep=0.5,
        kinds=("image", "video"),
        shape=shape,
        extras=per_layer_inputs,
        encoder=EncoderFacts(
            attention=last_attention("vision_tower.encoder.layers"),
            regroup=regroup,
            positioned_tower=lambda base: base.vision_tower,
        ),
        masks="base",
        build_masks=masks,
        head_compares_lengths=True,
        no_decoder_stage="layers share keys with earlier ones, and have inputs of their own by token",
    )
)
