"""Arguments of ops that pick k of N candidates: checks, and what has no file of its own."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class TokenCover(NamedTuple):
    """How well token n covers token r: by `(1 - shift) cos(r, n) + shift`, or by a softmax of that over all tokens n.

    Attributes:
        shift: in [0, 1); 0.5 gives (cos + 1) / 2.
        temperature: of the softmax, > 0. None: no softmax.
    """

    shift: float = 0.0
    temperature: float | None = None


def check_picks(k: int, batch: int, n: int, **given: Tensor | None) -> None:
    """Raise `ValueError` unless 1 <= k <= n and all the tensors given are (batch, n).

    Only shapes are checked: reading values would wait for the device.
    """
    if not 1 <= k <= n:
        raise ValueError(f"k={k} must be between 1 and N={n}")
    for name, tensor in given.items():
        if tensor is not None and tensor.shape != (batch, n):
            raise ValueError(f"{name} must be (B, N) = ({batch}, {n}), got shape {tuple(tensor.shape)}")
