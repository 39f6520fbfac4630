"""A device that is not the host, where there is none: what it forbids, and how often the host waits for it.

Tensors claim to be elsewhere and are computed on the CPU. As on a GPU, tensors of both sides cannot meet in one
operation, but for scalars, copies and indices; and whatever needs values on the host waits for the device.
"""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

aten = torch.ops.aten
_setup_privateuseone_for_python_backend("away")
DEVICE = torch.device("away:0")
# Results whose size or value the host has to know.
_WAITING = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique2, aten.equal, aten.is_nonzero}
_WAITING |= {aten.unique_dim, aten.unique_consecutive, aten.repeat_interleave, aten.bincount}
WAITS: Counter[str] = Counter()


class Away(torch.Tensor):
    """A tensor elsewhere."""

    data_here: torch.Tensor

    @staticmethod
    def __new__(cls, data: torch.Tensor) -> Away:
        layout: dict[str, Any] = dict(strides=data.stride(), storage_offset=data.storage_offset())
        out = torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=data.dtype, device=DEVICE, **layout)
        out.data_here = data
        return out

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Away({self.data_here!r})"

    def tolist(self) -> Any:
        WAITS["tolist"] += 1
        return self.data_here.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Lets tensors be made elsewhere."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _is_away(device: Any) -> bool:
    return device is not None and torch.device(device).type == DEVICE.type


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    packet = func.overloadpacket
    tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
    some_away = any(isinstance(tensor, Away) for tensor in tensors)
    target = kwargs.get("device")
    if packet in (aten.index, aten.index_put, aten.index_put_, aten._unsafe_index, aten._index_put_impl_):
        _check([args[0], *args[2:3]], func)
        if some_away and any(isinstance(i, Away) and i.dtype == torch.bool for i in args[1] if i is not None):
            WAITS[str(packet)] += 1  # a mask becomes places
    elif packet not in (aten.copy_, aten._to_copy, aten.set_):
        _check(tensors, func)
    if some_away and packet in _WAITING:
        WAITS[str(packet)] += 1
    comes_here = packet is aten._to_copy and target is not None and not _is_away(target)
    if packet is aten.copy_:
        comes_here = not isinstance(args[0], Away)
    if some_away and comes_here:
        WAITS["to the host"] += 1

    def here(leaf: Any) -> Any:
        return leaf.data_here if isinstance(leaf, Away) else leaf

    inside = tree_map(here, kwargs)
    if target is not None:
        inside["device"] = torch.device("cpu")
    out = func(*tree_map(here, args), **inside)
    if _is_away(target) or (some_away and not comes_here):
        out = tree_map(lambda leaf: Away(leaf) if isinstance(leaf, torch.Tensor) else leaf, out)
    return return_and_correct_aliasing(func, args, kwargs, out) if some_away else out


def _check(tensors: Any, func: Any) -> None:
    tensors = [tensor for tensor in tensors if isinstance(tensor, torch.Tensor)]
    if any(isinstance(t, Away) for t in tensors) and any(not isinstance(t, Away) and t.ndim for t in tensors):
        raise RuntimeError(f"{func} has tensors of the host and of {DEVICE}")


def _scalar(tensor: Away) -> Any:
    """What `torch.tensor([...])` asks of tensors in its list, past all dispatch."""
    WAITS["aten._local_scalar_dense"] += 1
    return tensor.data_here.item()


_LIBRARY = torch.library.Library("aten", "IMPL")
_LIBRARY.impl("_local_scalar_dense", _scalar, "PrivateUse1")


@contextlib.contextmanager
def elsewhere() -> Any:
    """For a block, tensors can be made on `DEVICE`; waits are counted from its begin."""
    WAITS.clear()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) makes it here, and sends it
    try:
        with torch.no_grad(), _Mode():
            yield WAITS
    finally:
        torch._C._set_only_lift_cpu_tensors(False)


def sent(model: nn.Module) -> nn.Module:
    """A copy of a model, elsewhere."""
    model = copy.deepcopy(model)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(Away(parameter.detach()), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = Away(buffer)
    return model
