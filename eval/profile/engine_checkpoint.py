"""Checkpoints for vLLM, those of published shapes without weights included."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import minivlm
from ..model_names import find_checkpoint
from . import shapes
from .vision_layers import in_proportion, with_vision_layers


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


#: Embedded model whose tokenizer and processor a published shape takes, and height and width of its images in pixels.
_ENGINE_SHAPES = {
    "llava-1.5-7b": ("llava", 336),
    "qwen2.5-vl-7b": ("qwen", 448),
    "qwen3-vl-2b": ("qwen3", 448),
    "qwen3-vl-8b": ("qwen3", 448),
}


def checkpoint_of(options: argparse.Namespace, folder: Path) -> tuple[Checkpoint, int | None]:
    """What the command line asks for, made in `folder` if it is a published shape; and the side of the images in
    pixels, if it is known.

    With fewer decoder layers the vision encoder has fewer in proportion, noted in `options`, unless a number is given.
    """
    dtype = options.dtype or "float32"
    if options.model is not None:
        return Checkpoint(find_checkpoint(options.model), dtype), options.image_size
    if options.vision_layers is None and options.layers is not None:
        share = options.layers / shapes.SHAPES[options.config].layers
        options.vision_layers = in_proportion(shapes.config_of(options.config, options.layers), share)
    path, side = make_checkpoint(options.config, options.layers, options.vision_layers, folder)
    return Checkpoint(str(path), dtype, dummy=True), options.image_size or side


def make_checkpoint(config: str, layers: int | None, vision_layers: int | None, where: Path) -> tuple[Path, int]:
    """Make a checkpoint folder of a published shape, without weights.

    The tokenizer is an embedded model's: which words there are does not affect the cost.

    Args:
        config: of `shapes.SHAPES`.
        layers: decoder layers; None: all.
        vision_layers: layers of the vision encoder; None: all.
        where: the folder to fill.

    Returns:
        The folder, and height and width of its images in pixels.

    Raises:
        ValueError: for a shape that vLLM is not supported with.
    """
    if config not in _ENGINE_SHAPES:
        known = ", ".join(_ENGINE_SHAPES)
        raise ValueError(f"--config {config} has no engine variant; accepted with --engine vllm: {known}")
    name, side = _ENGINE_SHAPES[config]
    source, made = minivlm.WEIGHTS[name], shapes.config_of(config, layers)
    if vision_layers is not None:
        with_vision_layers(made, vision_layers)
    settings = made.to_dict()
    ours = json.loads((source / "config.json").read_text())
    settings |= {
        key: value for key, value in ours.items() if key.endswith(("token_id", "token_index", "architectures"))
    }
    text = settings["text_config"]
    text |= {key: value for key, value in ours["text_config"].items() if key.endswith("token_id")}
    (where / "config.json").write_text(json.dumps(settings))
    patch = made.vision_config.patch_size
    for path in source.iterdir():
        if path.name.startswith(("tokenizer", "chat")):
            (where / path.name).write_text(path.read_text())
        elif "processor" in path.name:
            (where / path.name).write_text(json.dumps(_resized(json.loads(path.read_text()), side, patch)))
    return where, side


def _resized(settings: dict[str, Any], side: int, patch: int) -> dict[str, Any]:
    """A processor's settings, changed to images of height and width `side`, in pixels, and patches of `patch`."""
    changed: dict[str, Any] = {}
    for key, value in settings.items():
        if key in ("crop_size", "size"):
            changed[key] = dict.fromkeys(value, side)
        elif key == "patch_size":
            changed[key] = patch
        elif key in ("min_pixels", "max_pixels"):
            changed[key] = side * side
        else:
            changed[key] = _resized(value, side, patch) if isinstance(value, dict) else value
    return changed
