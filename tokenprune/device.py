"""Places of visual tokens are reckoned on the host: a device is asked once for a batch, and told without waiting."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Devices that copy what they are sent aside at once, so that nobody has to wait; MPS may read it when it is gone.
ASYNC_COPY_DEVICES = {"cuda"}


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device."""
    return tensor.to(device, non_blocking=device.type in ASYNC_COPY_DEVICES)


def index_rows(tensor: Tensor, index: Tensor) -> Tensor:
    """`tensor[index]` of ascending (K,) int64 on the host: a view of a stretch without gaps, else a copy."""
    k = len(index)
    if k and int(index[-1]) - int(index[0]) == k - 1:
        return tensor[int(index[0]) : int(index[0]) + k]
    return tensor[to_device(index, tensor.device)]


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """(K,) tensors of one dtype on the host, waiting for the device once, not for each."""
    if not tensors or any(tensor.device != tensors[0].device for tensor in tensors):
        return [tensor.cpu() for tensor in tensors]
    return list(torch.cat([*tensors]).cpu().split([len(tensor) for tensor in tensors]))
