"""Checkpoints by path, id, or name of an embedded model."""

from __future__ import annotations

from typing import Any

import torch

from . import minivlm


def load_checkpoint(name: str, dtype: torch.dtype, device: torch.device, attn: str | None = None) -> tuple[Any, Any]:
    """Model and processor.

    Args:
        name: a path or id, `embedded` or `embedded-qwen`.
        dtype: of the weights.
        device: where the model goes.
        attn: attention implementation; None: transformers' default.
    """
    from transformers import AutoModelForImageTextToText

    path = minivlm.checkpoint_path(name)
    model: Any = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype, attn_implementation=attn)
    return model.to(device).eval(), minivlm.load_processor(name)
