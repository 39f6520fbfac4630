"""Janus, where it reads pictures: one raster per image, from a SigLIP tower of its own. Pictures it makes are text."""

from __future__ import annotations

from dataclasses import replace

from . import deepseek_vl
from .registry import register_family

FAMILY = register_family(replace(deepseek_vl.FAMILY, model_types=("janus",), usual_towers=()))
