"""GLM-4.1V to GLM-4.6V and GLM-OCR: as Qwen2-VL. The placeholders of a video's frames are those of images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from . import qwen2_vl
from .base import Kind
from .registry import register_family


def placeholder(config: Any, kind: Kind) -> int:
    """One for images and for frames; `video_token_id` stands nowhere in what the model is fed."""
    token: int = config.image_token_id
    return token


assert qwen2_vl.FAMILY.encoder is not None
#: Patches are merged by a convolution, before what is called the merger.
ENCODER = replace(qwen2_vl.FAMILY.encoder, merger=lambda base: base.visual.downsample, packed_tower=None)
FAMILY = register_family(
    replace(
        qwen2_vl.FAMILY,
        model_types=("glm4v", "glm4v_moe", "glm46v", "glmga", "glm_ocr"),
        placeholder=placeholder,
        encoder=ENCODER,
        no_pixel_stage="its vision tower takes the frames of a video as pictures of their own",
    )
)
