"""Folders that every supported transformers loads: names and settings as hub checkpoints have them."""

from __future__ import annotations

import json
import re
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, PreTrainedModel

PIXEL_MEAN, PIXEL_STD = 0.5, 0.25


def save_model(model: PreTrainedModel, folder: Path, renamed: dict[str, str]) -> None:
    """Write a model as float16 safetensors; `renamed` maps patterns of parameter names to hub names."""
    text = model.config.get_text_config()
    model.generation_config = GenerationConfig(
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id,
        max_new_tokens=8,
        do_sample=False,
    )
    model.half().save_pretrained(folder)
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    for pattern, name in renamed.items():
        tensors = {re.sub(pattern, name, k): v for k, v in tensors.items()}
    save_file(tensors, weights, metadata={"format": "pt"})


def rewrite(path: Path, change) -> None:
    """Apply a change to a JSON file in place."""
    settings = json.loads(path.read_text())
    change(settings)
    path.write_text(json.dumps(settings, indent=1) + "\n")


def hub_tokenizer(settings: dict) -> None:
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings["additional_special_tokens"] = settings.pop("extra_special_tokens", [])
