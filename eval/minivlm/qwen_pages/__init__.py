"""A further miniature Qwen2.5-VL, which reads pages, watches short videos and describes scenes.

It starts from the weights of `qwen`. A visual token covers 8 x 8 pixels, and two frames of a video.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from .. import qwen
from ..drawing import PATCH
from ..qwen import END as END
from ..qwen_tower import TEMPORAL, VISION_PATCH
from ..tokenizer import token_ids
from .words import WORDS

_SPECIAL = tuple(qwen.IDS)[: qwen.IDS["assistant"] + 1]
IDS = token_ids(_SPECIAL, WORDS)
SIDE = 128  # of a page, pixels: 256 visual tokens
#: (height, width) of the pages, in pixels.
SIZES = ((SIDE, SIDE),)
#: Positions along time of the frames of one visual token and the next, as the config says. With these no position of a
#: short video is beyond those of its rows, behind which versions of transformers count on differently.
_INTERVAL = 2
MOST_WORDS = 40  # of an answer

tower, layers, tower_parameters, project = qwen.tower, qwen.layers, qwen.tower_parameters, qwen.project


def build_model() -> Qwen2_5_VLForConditionalGeneration:
    """The embedded `qwen` with further words, whose weights are random."""
    from .. import load

    model: Any = load("qwen")[0].train()
    known = len(qwen.IDS)
    for matrix in (model.get_input_embeddings(), model.get_output_embeddings()):
        weight = matrix.weight.detach()
        new = torch.randn(len(IDS) - known, weight.shape[1]) * weight.std()
        matrix.weight = torch.nn.Parameter(torch.cat([weight, new]))
    model.get_input_embeddings().num_embeddings = model.get_output_embeddings().out_features = len(IDS)
    model.config.text_config.vocab_size = len(IDS)
    model.config.vision_config.tokens_per_second = _INTERVAL
    return model


def build_processor() -> Any:
    """Word-level tokenizer, Qwen2-VL image processing and the chat template, as one processor without videos."""
    return qwen.build_processor(ids=IDS)


def save(model: Qwen2_5_VLForConditionalGeneration, folder: Path) -> None:
    """Write model and processor to `folder`, ready for `from_pretrained`."""
    qwen.save(model, folder, build_processor(), MOST_WORDS)


def framing(n: int, *size: int) -> tuple[list[int], list[int]]:
    """Token ids before a question, visual placeholders included, and those after it.

    Args:
        n: images or videos before the question.
        *size: height and width of an image in pixels; of a video, the frames before them.
    """
    *frames, height, width = size
    n_visual = height // PATCH * (width // PATCH) * (frames[0] // TEMPORAL if frames else 1)
    pad = IDS["<|video_pad|>" if frames else "<|image_pad|>"]
    visual = [IDS["<|vision_start|>"], *[pad] * n_visual, IDS["<|vision_end|>"]]
    return [IDS["<|im_start|>"], IDS["user"], *visual * n], [IDS[END], IDS["<|im_start|>"], IDS["assistant"]]


def grids(n: int, *size: int) -> Tensor:
    """Frames of two, rows and columns of the patches of `n` images or videos, int64 (n, 3).

    Args:
        n: images or videos.
        *size: as in `framing`.
    """
    *frames, height, width = size
    grid = [frames[0] // TEMPORAL if frames else 1, height // VISION_PATCH, width // VISION_PATCH]
    return torch.tensor([grid]).expand(n, -1)


def positions(model: Any, ids: Tensor, n: int, *size: int) -> Tensor:
    """Position ids of a sequence `ids` (1, L) with `n` images or videos of one size, int64 (3, 1, L)."""
    video = len(size) == 3
    pad = IDS["<|video_pad|>" if video else "<|image_pad|>"]
    which = "video_grid_thw" if video else "image_grid_thw"
    kinds = (ids == pad).int() * (2 if video else 1)
    return model.model.get_rope_index(ids, mm_token_type_ids=kinds, **{which: grids(n, *size)})[0]
