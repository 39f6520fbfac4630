"""Copies between host and device.

Which visual tokens stay is worked out on the host: indices are copied from the device once for a batch, and back to
it without waiting.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Types of device to which `non_blocking` copies are safe: they copy pageable host memory aside before `to` returns.
#: MPS does not: it may read the memory after it has been freed.
ASYNC_COPY_DEVICES = {"cuda"}


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A host tensor on a device, without waiting for the copy where that is safe."""
    return tensor.to(device, non_blocking=device.type in ASYNC_COPY_DEVICES)


def index_rows(tensor: Tensor, index: Tensor) -> Tensor:
    """`tensor[index]`, (K, ...).

    Args:
        tensor: (N, ...), on any device.
        index: (K,) int64, ascending and distinct, on the host.

    Returns:
        a view where the indices have no gaps, else a copy.
    """
    k = len(index)
    if k and int(index[-1]) - int(index[0]) == k - 1:
        return tensor[int(index[0]) : int(index[0]) + k]
    return tensor[to_device(index, tensor.device)]


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """1-D tensors of one dtype, copied to the host; those of one device in a single copy."""
    if not tensors or any(tensor.device != tensors[0].device for tensor in tensors):
        return [tensor.cpu() for tensor in tensors]
    return list(torch.cat([*tensors]).cpu().split([len(tensor) for tensor in tensors]))
