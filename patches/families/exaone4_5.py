"""EXAONE 4.5: the vision tower of Qwen2.5-VL, over a text model with 1-D positions."""

from __future__ import annotations

from dataclasses import replace

from . import qwen2_vl
from .registry import register_family

FAMILY = register_family(replace(qwen2_vl.FAMILY, model_types=("exaone4_5",), positions="1d"))
