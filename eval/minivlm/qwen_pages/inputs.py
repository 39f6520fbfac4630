"""Model inputs of questions about short videos, for which no video processor is needed."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, Qwen2_5_VLModel

from ..qwen_tower import TEMPORAL, patches
from . import IDS, framing, grids

_PLACEHOLDER = "<|video_pad|>"


def clip_inputs(processor: Any, questions: Sequence[str], clips: Sequence[np.ndarray]) -> BatchFeature:
    """Model inputs of a batch of questions, each about one short video.

    All video processors of transformers need torchvision. These inputs are those that it would make of frames that it
    neither samples nor resizes, with one second for a visual token's two frames.

    Args:
        processor: of the embedded model.
        questions: one for each video.
        clips: frames, uint8 (T, H, W, 3) with T even and H and W multiples of 8, all of one size.
    """
    size = clips[0].shape[:3]
    visual = framing(1, *size)[0].count(IDS[_PLACEHOLDER])
    texts = []
    for question in questions:
        content = [{"type": "video"}, {"type": "text", "text": question}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        texts.append(text.replace(_PLACEHOLDER, _PLACEHOLDER * visual))
    inputs = dict(processor.tokenizer(texts, padding=True, return_tensors="pt"))
    frames = torch.from_numpy(np.stack(clips))
    inputs["pixel_values_videos"] = patches(frames.unflatten(1, (-1, TEMPORAL)).flatten(0, 1))
    inputs["video_grid_thw"] = grids(len(clips), *size)
    inputs["second_per_grid_ts"] = torch.ones(len(clips))
    if "mm_token_type_ids" in inspect.signature(Qwen2_5_VLModel.get_rope_index).parameters:  # later transformers 5
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == IDS[_PLACEHOLDER]).int() * 2
    return BatchFeature(inputs)
