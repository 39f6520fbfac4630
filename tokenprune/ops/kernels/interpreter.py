"""Triton's interpreter, which runs kernels on the CPU."""

from __future__ import annotations

import os


def interpreted() -> bool:
    """Whether kernels run in the interpreter.

    It multiplies bfloat16 matrices as raw bits, so kernels convert operands of `tl.dot` to float32 there.
    """
    return os.environ.get("TRITON_INTERPRET") == "1"
