"""MiniCPM-V 4.7: as MiniCPM-V 4.6, with multi-axis RoPE."""

from __future__ import annotations

from dataclasses import replace

from . import minicpmv4_6
from .registry import register_family

FAMILY = register_family(replace(minicpmv4_6.FAMILY, model_types=("minicpmv4_7",), positions="mrope"))
