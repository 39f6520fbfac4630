"""Qwen2.5-VL: as Qwen2-VL; windows of the vision tower are undone by the merger."""

from __future__ import annotations

from dataclasses import replace

from . import qwen2_vl
from .registry import register_family

FAMILY = register_family(replace(qwen2_vl.FAMILY, model_types=("qwen2_5_vl",)))
