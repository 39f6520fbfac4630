"""What a profile counts: time on a device, FLOPs and memory."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import StoppingCriteria

from ...patches.families.registry import family_of
from ...patches.modules import base_of, text_model_of


def now(device: torch.device) -> float:
    """Milliseconds, after all that is queued on the device."""
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


def count_flops() -> FlopCounterMode:
    """torch's FLOP counter, extended by fused attention on a CPU, which it lacks, and with fewer heads of keys."""

    def attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
        return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])

    fused = ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
    names = [f"_scaled_dot_product_{name}" for name in fused]
    ops = [getattr(torch.ops.aten, name) for name in names if hasattr(torch.ops.aten, name)]
    return FlopCounterMode(display=False, custom_mapping=dict.fromkeys(ops, attention))


def decoder_flops(model: Any, cache: Any) -> int:
    """FLOPs of one prefill through the decoder layers in closed form, a multiplication and an addition counted as two.

    Per row and layer with L tokens: 2 L times the number of elements of the layer's matrices, and 4 L^2 times the
    width of its heads for attention scores and values. Causality does not halve the latter, as torch counts. L is the
    length of the layer's KV cache, padding included.

    Args:
        model: a supported model.
        cache: filled by the prefill.
    """
    text = text_model_of(base_of(model), family_of(model))
    total = 0
    for layer, of_layer in zip(text.layers, cache.layers, strict=True):
        batch, _, length, _ = of_layer.keys.shape
        matrices = sum(p.numel() for p in layer.parameters() if p.ndim == 2)
        heads = layer.self_attn.o_proj.in_features
        total += batch * (2 * length * matrices + 4 * length**2 * heads)
    return total


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int:
    """The most bytes in use at a time during a call, beyond those in use before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with _no_stderr(), torch.profiler.profile(activities=activities, profile_memory=True) as trace:
        run()
    assert trace.profiler is not None
    events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
    level = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak


def busy_ms(run: Callable[[], Any], device: torch.device) -> float | None:
    """Milliseconds in which a GPU computes or copies during a call; None on a CPU.

    It is less than the time by the clock where the device waits for the next kernel to be launched.
    """
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with _no_stderr(), torch.profiler.profile(activities=activities, acc_events=True) as trace:
        run()
        torch.cuda.synchronize(device)
    return sum(event.self_device_time_total for event in trace.key_averages()) / 1e3


@contextmanager
def _no_stderr() -> Iterator[None]:
    """Silences file descriptor 2, to which torch's profiler logs its starts and stops directly."""
    sys.stderr.flush()
    stderr, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(devnull)
