"""What is written of a training beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import nn

from ..machine import describe, device_and_threads


def record(
    command: str, device: str, model: nn.Module, seconds: float, figures: Mapping[str, float], curve: list[Any]
) -> dict[str, Any]:
    """The content of `training.json`.

    Args:
        command: that repeats the training.
        device: that it ran on.
        model: what was trained.
        seconds: that it took.
        figures: exact match on validation questions, by type.
        curve: of the training, row by row.
    """
    return {
        "command": command,
        "machine": device_and_threads(describe(device)),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "parameters": sum(p.numel() for p in model.parameters()),
        "wall_minutes": round(seconds / 60, 1),
        "validation_exact_match": figures,
        "curve": curve,
    }
