"""How pruning reaches into each model family: hooks on instances, one file of facts per family."""

from . import (
    aya_vision,
    deepseek_vl,
    gemma3,
    idefics3,
    internvl,
    llava,
    llava_next,
    llava_next_video,
    llava_onevision,
    mistral3,
    paligemma,
    qwen2_5_vl,
    qwen2_vl,
    qwen3_5,
    qwen3_vl,
    vipllava,
)
from .base import Family, UnsupportedModelError, family_of, register_family, supported_model_types
from .hooks import Pruner, Record

__all__ = [
    "Family",
    "Pruner",
    "Record",
    "UnsupportedModelError",
    "aya_vision",
    "deepseek_vl",
    "family_of",
    "gemma3",
    "idefics3",
    "internvl",
    "llava",
    "llava_next",
    "llava_next_video",
    "llava_onevision",
    "mistral3",
    "paligemma",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_5",
    "qwen3_vl",
    "register_family",
    "supported_model_types",
    "vipllava",
]
