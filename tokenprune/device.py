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
    if _is_run(index):
        return tensor[int(index[0]) : int(index[0]) + len(index)]
    return tensor[to_device(index, tensor.device)]


def to_device_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """1-D host tensors of one dtype on a device, in a single copy."""
    if len(tensors) < 2 or device.type == "cpu":
        return [to_device(tensor, device) for tensor in tensors]
    return list(to_device(torch.cat([*tensors]), device).split([len(tensor) for tensor in tensors]))


def index_each_row(tensor: Tensor, indices: Sequence[Tensor]) -> list[Tensor]:
    """`index_rows(tensor[i], indices[i])` for each row i; those with gaps in a single gather on a GPU.

    Args:
        tensor: (B, N, ...), on any device.
        indices: for each row, as `index_rows` takes it.
    """
    gaps = [i for i, index in enumerate(indices) if not _is_run(index)]
    if len(gaps) < 2 or tensor.device.type == "cpu":
        return [index_rows(row, index) for row, index in zip(tensor, indices, strict=True)]
    flat = torch.cat([indices[i] + i * tensor.shape[1] for i in gaps])
    taken = tensor.flatten(0, 1)[to_device(flat, tensor.device)].split([len(indices[i]) for i in gaps])
    found = dict(zip(gaps, taken, strict=True))
    return [found[i] if i in found else index_rows(tensor[i], index) for i, index in enumerate(indices)]


def _is_run(index: Tensor) -> bool:
    """Whether an ascending index on the host has no gaps."""
    return len(index) > 0 and int(index[-1]) - int(index[0]) == len(index) - 1


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """1-D tensors of one dtype, copied to the host; those of one device in a single copy."""
    if not tensors or any(tensor.device != tensors[0].device for tensor in tensors):
        return [tensor.cpu() for tensor in tensors]
    return list(torch.cat([*tensors]).cpu().split([len(tensor) for tensor in tensors]))
