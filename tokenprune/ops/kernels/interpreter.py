"""Whether kernels run in Triton's interpreter, on the CPU."""

from __future__ import annotations

import os


def interpreted() -> bool:
    """The interpreter multiplies bfloat16 matrices as raw bits: there they are widened first."""
    return os.environ.get("TRITON_INTERPRET") == "1"
