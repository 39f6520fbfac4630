"""When a model encodes a picture, and when it generates each token."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import StoppingCriteria

from ...patches.modules import base_of

_ENCODES = "get_image_features"  # what models call their vision encoder and projector


def now(device: torch.device) -> float:
    """Milliseconds, after all work on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1e3 * time.perf_counter()


class TokenClock(StoppingCriteria):
    """Notes when it is made and when each token was generated, in milliseconds; it never ends a generation.

    Attributes:
        times: of the start and of each token.
    """

    def __init__(self, device: torch.device):
        self.device, self.times = device, [now(device)]

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        self.times.append(now(self.device))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@contextmanager
def vision_times(model: nn.Module, device: torch.device) -> Iterator[list[float]]:
    """Yields a list that gets the milliseconds of each call of vision encoder and projector, until the block ends."""
    base: Any = base_of(model)
    encode: Callable[..., Any] = getattr(base, _ENCODES)
    times: list[float] = []

    def timed(*args: Any, **kwargs: Any) -> Any:
        started = now(device)
        try:
            return encode(*args, **kwargs)
        finally:
            times.append(now(device) - started)

    setattr(base, _ENCODES, functools.update_wrapper(timed, encode))  # generate() reads the signature
    try:
        yield times
    finally:
        delattr(base, _ENCODES)
