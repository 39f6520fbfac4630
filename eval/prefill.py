"""Prefill time and KV-cache size under several settings, measured in turn within one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..patches.cache import cache_name

WARM_UP = 2  # rounds before those that count


@dataclass(frozen=True)
class Prefill:
    """Medians over the rounds.

    Attributes:
        ms: selection and language model, up to the first logits, without the vision encoder.
        vision_ms: vision encoder and projector.
        kv_cache_bytes: KV cache of the whole batch.
    """

    ms: float
    vision_ms: float
    kv_cache_bytes: int


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def cache_bytes(cache: Any) -> int:
    """Bytes of the key and value tensors of a cache."""
    return sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))


@torch.inference_mode()
def measure_prefill(
    model: nn.Module,
    inputs: Mapping[str, Any],
    settings: Mapping[Any, Callable[[], AbstractContextManager[Any]]],
    rounds: int = 15,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> dict[Any, Prefill]:
    """Time the prefill of one batch under each setting.

    Args:
        model: a model whose base has `vision_tower` and `multi_modal_projector`.
        inputs: one batch.
        settings: by key, a function that makes the context in which the model runs.
        rounds: counted rounds, after `WARM_UP` others. Each runs every setting once, so that a slow moment of the
            machine affects all of them.
        progress: wraps the iteration over rounds.

    Returns:
        Medians by key.
    """
    device, marks = next(model.parameters()).device, [0.0, 0.0]
    base: Any = model.base_model

    def start(module: nn.Module, args: tuple[Any, ...]) -> None:
        marks[:] = [_now(device), 0.0]

    def stop(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        marks[1] = marks[1] or _now(device)  # a second call is made by a policy, and its time counts as selection

    handles = [
        base.vision_tower.register_forward_pre_hook(start),
        base.multi_modal_projector.register_forward_hook(stop),
    ]
    times: dict[Any, list[tuple[float, float]]] = {key: [] for key in settings}
    sizes: dict[Any, int] = {}
    try:
        for i in progress(range(-WARM_UP, rounds)):
            for key, context in settings.items():
                with context():
                    before = _now(device)
                    out = model(**inputs, use_cache=True, logits_to_keep=1)
                    total = _now(device) - before
                sizes[key] = cache_bytes(getattr(out, cache_name()))
                vision = marks[1] - marks[0]
                if i >= 0:
                    times[key].append((total - vision, vision))
    finally:
        for handle in handles:
            handle.remove()
    return {
        key: Prefill(
            ms=1e3 * statistics.median(prefill for prefill, _ in pairs),
            vision_ms=1e3 * statistics.median(vision for _, vision in pairs),
            kv_cache_bytes=sizes[key],
        )
        for key, pairs in times.items()
    }
