"""Checkpoints for vLLM, those of published shapes without weights included."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import minivlm
from . import shapes


@dataclass(frozen=True)
class Checkpoint:
    """What an engine serves.

    Attributes:
        model: a path or id, or the name of an embedded model.
        dtype: of weights and activations.
        dummy: whether weights are random, instead of those of the checkpoint.
    """

    model: str
    dtype: str = "float32"
    dummy: bool = False


def make_checkpoint(config: str, layers: int | None, where: Path) -> tuple[Path, int]:
    """Make a checkpoint folder of a published shape, without weights.

    The tokenizer is an embedded model's: which words there are does not affect the cost.

    Args:
        config: of `shapes.SHAPES`.
        layers: decoder layers; None: all.
        where: the folder to fill.

    Returns:
        The folder, and height and width of its images in pixels.

    Raises:
        ValueError: for a shape that vLLM is not supported with.
    """
    names = {"llava-1.5-7b": "llava", "qwen2.5-vl-7b": "qwen"}
    if config not in names:
        raise ValueError(f"--config {config} has no engine variant; accepted with --engine vllm: {', '.join(names)}")
    source = minivlm.WEIGHTS[names[config]]
    shape = shapes.SHAPES[config]
    settings = shape.build(layers or shape.layers).to_dict()
    ours = json.loads((source / "config.json").read_text())
    settings |= {
        key: value for key, value in ours.items() if key.endswith(("token_id", "token_index", "architectures"))
    }
    text = settings["text_config"]
    text |= {key: value for key, value in ours["text_config"].items() if key.endswith("token_id")}
    (where / "config.json").write_text(json.dumps(settings))
    side = 336 if names[config] == "llava" else 448
    for path in source.iterdir():
        if path.name.startswith(("tokenizer", "chat")):
            (where / path.name).write_text(path.read_text())
        elif "processor" in path.name:
            (where / path.name).write_text(json.dumps(_resized(json.loads(path.read_text()), side)))
    return where, side


def _resized(settings: dict[str, Any], side: int) -> dict[str, Any]:
    """A processor's settings, changed to images of height and width `side` and patches of 14 pixels."""
    changed: dict[str, Any] = {}
    for key, value in settings.items():
        if key in ("crop_size", "size"):
            changed[key] = dict.fromkeys(value, side)
        elif key == "patch_size":
            changed[key] = 14
        elif key in ("min_pixels", "max_pixels"):
            changed[key] = side * side
        else:
            changed[key] = _resized(value, side) if isinstance(value, dict) else value
    return changed
