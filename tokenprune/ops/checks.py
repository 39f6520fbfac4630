"""Checks of the arguments of ops that pick k of N candidates."""

from __future__ import annotations

from torch import Tensor


def check_picks(k: int, batch: int, n: int, **given: Tensor | None) -> None:
    """Raise `ValueError` unless 1 <= k <= n and all the tensors given are (batch, n).

    Only shapes are checked: reading values would wait for the device.
    """
    if not 1 <= k <= n:
        raise ValueError(f"k={k} must be between 1 and N={n}")
    for name, tensor in given.items():
        if tensor is not None and tensor.shape != (batch, n):
            raise ValueError(f"{name} must be (B, N) = ({batch}, {n}), got shape {tuple(tensor.shape)}")
