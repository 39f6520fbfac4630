"""The choice between the implementations of an op."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import Tensor

# Module with a function for each op, by the implementation's name.
_MODULES = {"reference": ".reference", "host": ".host", "triton": ".kernels"}
_KERNEL_DTYPES = {torch.float16, torch.bfloat16, torch.float32}
_FORCED: ContextVar[str | None] = ContextVar("tokenprune_ops", default=None)


@contextmanager
def implementation(name: str) -> Iterator[None]:
    """Force one implementation for the ops of a block: `"reference"`, `"host"` or `"triton"`.

    Raises:
        ValueError: unknown name, or Triton is not installed.
    """
    if name not in _MODULES:
        raise ValueError(f"implementation {name!r} is unknown; accepted: {', '.join(map(repr, _MODULES))}")
    if name == "triton" and not _has_triton():
        raise ValueError("implementation 'triton' needs the package triton, which is not installed")
    token = _FORCED.set(name)
    try:
        yield
    finally:
        _FORCED.reset(token)


def call(op: str, tensor: Tensor, *args: Any) -> Any:
    """Run an op with the forced implementation, else with the one for its first tensor's device and dtype."""
    name = _FORCED.get()
    if name is None:
        fused = tensor.device.type == "cuda" and tensor.dtype in _KERNEL_DTYPES and _has_triton()
        name = "triton" if fused else "host"
    run: Callable[..., Any] = getattr(importlib.import_module(_MODULES[name], __package__), op)
    return run(tensor, *args)


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
