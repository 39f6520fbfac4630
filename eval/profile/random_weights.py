"""Random weights that cost little: initialisation copies one block of random numbers, instead of drawing each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

#: Random numbers in the block. A prime: rows of a matrix start at different places of it, so that no two are equal.
BLOCK = 1_000_003


class CheapRandom(TorchFunctionMode):
    """A context in which normal and uniform numbers, and those of `kaiming_uniform_`, are copied from a block of them.

    Mean, spread and range are those that are asked for. Numbers recur after `BLOCK` others, and every tensor begins
    with the same ones, which does not matter where only time and memory are measured.

    Args:
        tick: receives the number of bytes of each tensor that is filled.
    """

    def __init__(self, tick: Callable[[int], None] = lambda count: None):
        super().__init__()
        self.tick = tick
        self._blocks: dict[tuple[Any, ...], Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensor = args[0] if args else kwargs.get("tensor")  # functions of `torch.nn.init` name it
        name = getattr(func, "__name__", "")  # transformers puts functions of its own in the place of torch's
        if name not in _DRAWN or tensor.device.type == "meta" or not tensor.is_contiguous():
            return func(*args, **kwargs)
        draw, read = _DRAWN[name]
        given = {key: value for key, value in kwargs.items() if key not in ("tensor", "generator")}
        with torch.no_grad():
            self._fill(tensor, draw, read(tensor, *args[1:], **given))
        return tensor

    def _fill(self, tensor: Tensor, draw: Callable[..., Tensor], numbers: tuple[float, float]) -> None:
        key = (draw, numbers, tensor.dtype, tensor.device)
        if key not in self._blocks:
            drawn = draw(torch.empty(BLOCK, device=tensor.device), *numbers, generator=_generator(tensor.device))
            self._blocks[key] = drawn.to(tensor.dtype)
        block, flat = self._blocks[key], tensor.detach().view(-1)
        whole = len(flat) // BLOCK * BLOCK
        flat[:whole].view(-1, BLOCK).copy_(block.expand(whole // BLOCK, -1))
        flat[whole:].copy_(block[: len(flat) - whole])
        self.tick(tensor.numel() * tensor.element_size())


def _generator(device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(0)


def _normal(tensor: Tensor, mean: float = 0.0, std: float = 1.0) -> tuple[float, float]:
    return mean, std


def _uniform(tensor: Tensor, a: float = 0.0, b: float = 1.0, **named: float) -> tuple[float, float]:
    return named.get("from", a), named.get("to", b)


def _kaiming(
    tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu"
) -> tuple[float, float]:
    bound = math.sqrt(6 / ((1 + a**2) * tensor[0].numel()))
    return -bound, bound


#: By the names of functions that draw: what they draw from, and its mean and spread, or its range, by their arguments.
_DRAWN: dict[str, tuple[Callable[..., Tensor], Callable[..., tuple[float, float]]]] = {
    "normal_": (Tensor.normal_, _normal),
    "uniform_": (Tensor.uniform_, _uniform),
    "kaiming_uniform_": (Tensor.uniform_, _kaiming),
}
