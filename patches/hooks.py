"""Former place of `Pruner`, which is in `pruner.py`, and of the stack of calls, which is in `call.py`."""

from __future__ import annotations

import warnings
from typing import Any

from . import call, pruner


def __getattr__(name: str) -> Any:
    for module in (pruner, call):
        if not name.startswith("__") and hasattr(module, name):
            now = f"{module.__name__}.{name}"
            warnings.warn(f"{__name__} is deprecated: use {now}", DeprecationWarning, stacklevel=2)
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
