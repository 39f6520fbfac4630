"""Training on a device other than the CPU: what is drawn stays on the host, and comes to the device when it is used."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def placed(data: Any, device: torch.device) -> Any:
    """Data, a dataclass or named tuple of tensors, on a device."""
    if hasattr(data, "_fields"):
        return type(data)(*(tensor.to(device) for tensor in data))
    return type(data)(**{each.name: getattr(data, each.name).to(device) for each in fields(data)})


def drawn_on_host(draws: Iterator[T]) -> Iterator[T]:
    """The same draws on every device: random numbers come from generators of the host."""
    while True:
        with torch.device("cpu"):
            draw = next(draws, None)
        if draw is None:
            return
        yield draw


def autocast(device: torch.device, bf16: bool) -> contextlib.AbstractContextManager[Any]:
    """A context of bfloat16 autocast, if it is used."""
    return torch.autocast(device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()
