"""Two emulated devices: their tensors are held and computed on the host.

As with GPUs, tensors of different devices cannot meet in one operation, except for scalars, copies, and indices on
the host. An operation that needs values on the host is counted as a wait, and every one that is no view as a launch.
"""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.hooks import attach_align_device_hook_on_blocks
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from tokenprune.device import ASYNC_COPY_DEVICES
from tokenprune.patches.families.registry import family_of
from tokenprune.patches.modules import base_of, text_model_of

aten = torch.ops.aten
_setup_privateuseone_for_python_backend("emulated")
DEVICE, SECOND = torch.device("emulated:0"), torch.device("emulated:1")
ASYNC_COPY_DEVICES.add(DEVICE.type)
# Results whose size or value the host has to know.
_WAITING = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique2, aten.equal, aten.is_nonzero}
_WAITING |= {aten.unique_dim, aten.unique_consecutive, aten.repeat_interleave, aten.bincount}
_INDEXING = {aten.index, aten._unsafe_index, aten.index_put, aten.index_put_, aten._index_put_impl_}
WAITS: Counter[str] = Counter()
LAUNCHES: Counter[str] = Counter()


class EmulatedTensor(torch.Tensor):
    """A tensor that says it is on an emulated device; `data_on_host` has its values."""

    data_on_host: torch.Tensor

    @staticmethod
    def __new__(cls, data: torch.Tensor, device: torch.device = DEVICE, requires_grad: bool = False) -> EmulatedTensor:
        if isinstance(data, EmulatedTensor):  # accelerate makes parameters anew
            data, device = data.data_on_host, data.device
        layout: dict[str, Any] = dict(strides=data.stride(), storage_offset=data.storage_offset())
        out = torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=data.dtype, device=device, **layout)
        out.data_on_host = data
        return out

    def __repr__(self) -> str:  # type: ignore[override]
        return f"EmulatedTensor({self.data_on_host!r})"

    def tolist(self) -> Any:
        WAITS["tolist"] += 1
        return self.data_on_host.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Lets tensors be made on an emulated device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _is_emulated(device: Any) -> bool:
    return device is not None and torch.device(device).type == DEVICE.type


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    packet = func.overloadpacket
    tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
    some_emulated = any(isinstance(tensor, EmulatedTensor) for tensor in tensors)
    target = kwargs.get("device")
    if packet in _INDEXING:
        indices = [i for i in args[1] if i is not None]
        _check([args[0], *args[2:3], *(i for i in indices if isinstance(i, EmulatedTensor))], func)
        if any(isinstance(i, EmulatedTensor) and i.dtype == torch.bool for i in indices):
            WAITS[str(packet)] += 1  # a mask becomes indices
    elif packet not in (aten.copy_, aten._to_copy, aten.set_):
        _check(tensors, func)
    comes_to_host = packet is aten._to_copy and target is not None and not _is_emulated(target)
    if packet is aten.copy_:
        comes_to_host = not isinstance(args[0], EmulatedTensor)
    if some_emulated and comes_to_host:
        WAITS["to the host"] += 1
    from_host = _is_emulated(target) and not some_emulated and any(t.numel() for t in tensors)
    if from_host and not kwargs.get("non_blocking"):
        WAITS["from the host"] += 1
    if some_emulated and packet in _WAITING:
        WAITS[str(packet)] += 1
    is_view = any(out.alias_info is not None and not out.alias_info.is_write for out in func._schema.returns)
    if (some_emulated or _is_emulated(target)) and not is_view:
        LAUNCHES[str(packet)] += 1

    def on_host(leaf: Any) -> Any:
        return leaf.data_on_host if isinstance(leaf, EmulatedTensor) else leaf

    inside = tree_map(on_host, kwargs)
    if target is not None:
        inside["device"] = torch.device("cpu")
    out = func(*tree_map(on_host, args), **inside)
    if _is_emulated(target) or (some_emulated and not comes_to_host):
        sources = [t.device for t in tensors if isinstance(t, EmulatedTensor)]
        where = sources[0] if target is None else torch.device(target)
        where = DEVICE if where.index is None else where
        out = tree_map(lambda leaf: EmulatedTensor(leaf, where) if isinstance(leaf, torch.Tensor) else leaf, out)
    return return_and_correct_aliasing(func, args, kwargs, out) if some_emulated else out


def _check(tensors: Any, func: Any) -> None:
    devices = {t.device for t in tensors if isinstance(t, torch.Tensor) and (isinstance(t, EmulatedTensor) or t.ndim)}
    if len(devices) > 1:
        raise RuntimeError(f"{func} has tensors of {' and '.join(sorted(map(str, devices)))}")


def _scalar(tensor: EmulatedTensor) -> Any:
    """What `torch.tensor([...])` asks of tensors in its list, past all dispatch."""
    WAITS["aten._local_scalar_dense"] += 1
    return tensor.data_on_host.item()


_LIBRARY = torch.library.Library("aten", "IMPL")
_LIBRARY.impl("_local_scalar_dense", _scalar, "PrivateUse1")


@contextlib.contextmanager
def device_mode() -> Any:
    """For a block, tensors can be made on `DEVICE`; waits are counted from its begin."""
    WAITS.clear()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) makes it here, and sends it
    try:
        with torch.no_grad(), _Mode():
            yield WAITS
    finally:
        torch._C._set_only_lift_cpu_tensors(False)


def moved(model: nn.Module, second: Sequence[str] = ()) -> nn.Module:
    """A copy of a model on the emulated device.

    With `second`, names out of `blocks`, the copy is spread over both devices, with the hooks that accelerate
    attaches for a `device_map`: these modules are on the second device.
    """
    model = copy.deepcopy(model)
    for name, module in model.named_modules():
        device = SECOND if any(f"{name}.".startswith(f"{start}.") for start in second) else DEVICE
        for key, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[key] = nn.Parameter(EmulatedTensor(parameter.detach(), device), requires_grad=False)
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = EmulatedTensor(buffer, device)
    if second:
        devices = {name: SECOND if name in second else DEVICE for name in blocks(model)}
        kept_together: dict[str, Any] = dict(offload=dict.fromkeys(devices, False))
        kept_together["skip_keys"] = model._skip_keys_device_placement  # the cache's layers are where their layer is
        attach_align_device_hook_on_blocks(model, {"": DEVICE, **devices}, **kept_together)
    return model


def blocks(model: nn.Module) -> list[str]:
    """Names of what a model can be split into: its tower and projector, its decoder's layers, and the rest."""
    base, text = base_of(model), text_model_of(base_of(model), family_of(model))
    split = {id(model), id(base), id(text), id(text.layers)}
    return [
        f"{name}.{child}".lstrip(".")
        for name, module in model.named_modules()
        if id(module) in split
        for child, part in module.named_children()
        if id(part) not in split
    ]
