"""How pruning reaches into each model family: hooks on instances, one file of facts per family."""

from . import llava, llava_next, llava_onevision, qwen2_5_vl, qwen2_vl, qwen3_vl
from .base import Family, UnsupportedModelError, family_of, register_family, supported_model_types
from .hooks import Pruner, Record

__all__ = [
    "Family",
    "Pruner",
    "Record",
    "UnsupportedModelError",
    "family_of",
    "llava",
    "llava_next",
    "llava_onevision",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_vl",
    "register_family",
    "supported_model_types",
]
