"""Checkpoints by path, id, or name of an embedded model."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch

from . import minivlm
from .errors import CommandError
from .model_names import check_attention, find_checkpoint

logger = logging.getLogger(__name__)


def load_checkpoint(
    name: str, dtype: torch.dtype, device: torch.device, attn: str | None = None, device_map: str | None = None
) -> tuple[Any, Any]:
    """Model and processor.

    Args:
        name: a path or id, or that of an embedded model.
        dtype: of the weights.
        device: where the model goes.
        attn: attention implementation; None: transformers' default.
        device_map: spreads the model over several devices, as in transformers; None: it goes to `device`.

    Raises:
        CommandError: there is no such checkpoint, it is no vision-language model, or a package that it needs is not
            installed.
    """
    check_attention(attn)
    path = find_checkpoint(name)
    with _one_line(name):
        processor = minivlm.load_processor(path)  # first: it fails sooner
    return load_model(name, dtype, device, attn, device_map), processor


def load_model(
    name: str, dtype: torch.dtype, device: torch.device, attn: str | None = None, device_map: str | None = None
) -> Any:
    """The model of `load_checkpoint`."""
    from transformers import AutoModelForImageTextToText

    check_attention(attn)
    path = find_checkpoint(name)
    logger.info("loading %s as %s on %s", path, dtype, device_map or device)
    with _one_line(name):
        model: Any = AutoModelForImageTextToText.from_pretrained(
            path, dtype=dtype, attn_implementation=attn, device_map=device_map
        )
    return (model if device_map else model.to(device)).eval()


@contextlib.contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Around what transformers loads of a checkpoint."""
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        raise CommandError(f"{name} cannot be loaded: {error}") from error
