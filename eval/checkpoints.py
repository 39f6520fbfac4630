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

    Raises:
        CommandError: the processor needs a package that is not installed. The model is not loaded then.
        OSError: there is no such checkpoint.
    """
    processor = minivlm.load_processor(name)
    return load_model(name, dtype, device, attn), processor


def load_model(name: str, dtype: torch.dtype, device: torch.device, attn: str | None = None) -> Any:
    """The model of `load_checkpoint`."""
    from transformers import AutoModelForImageTextToText

    path = minivlm.checkpoint_path(name)
    model: Any = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype, attn_implementation=attn)
    return model.to(device).eval()
