"""Checkpoint folders that every supported version of transformers loads, named as on the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, PreTrainedModel

from ..files import write_json

PIXEL_MEAN, PIXEL_STD = 0.5, 0.25
MOST_WORDS = 8  # of an answer about a scene, with its end


def save_model(model: PreTrainedModel, folder: Path, renamed: dict[str, str], most: int = MOST_WORDS) -> None:
    """Write a model as float16 safetensors, which changes the model too.

    Args:
        model: the model.
        folder: to write to.
        renamed: regular expressions in parameter names, and the hub's names instead.
        most: tokens that `generate` writes at most, unless told otherwise.
    """
    text = model.config.get_text_config()
    model.generation_config = GenerationConfig(
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id,
        max_new_tokens=most,
        do_sample=False,
    )
    model.half().save_pretrained(folder)
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    for pattern, name in renamed.items():
        tensors = {re.sub(pattern, name, k): v for k, v in tensors.items()}
    save_file(tensors, weights, metadata={"format": "pt"})


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the content of a JSON file in place."""
    settings = json.loads(path.read_text())
    change(settings)
    write_json(path, settings)


def hub_tokenizer(settings: dict[str, Any]) -> None:
    """Change a tokenizer's config of transformers 5 to one that transformers 4 loads too."""
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings["additional_special_tokens"] = settings.pop("extra_special_tokens", [])
