"""Former place of what a policy sees and answers: import these names from `tokenprune`."""

from __future__ import annotations

import warnings
from typing import Any

from .policies import types

__all__ = [  # noqa: F822
    "DecoderView",
    "EncoderSpec",
    "Grid",
    "Selection",
    "TowerCut",
    "TowerView",
    "VisualTokens",
]


def __getattr__(name: str) -> Any:
    if name.startswith("__") or not hasattr(types, name):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"tokenprune.visual is deprecated: import {name} from tokenprune", DeprecationWarning, stacklevel=2)
    return getattr(types, name)
