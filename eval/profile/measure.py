"""Vision encoder, selection, prefill, decoding, memory and FLOPs, measured full and pruned within one run."""

from __future__ import annotations

import functools
import itertools
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from ...patches.cache import CACHE_NAME
from ...patches.families.registry import family_of
from ...patches.modules import base_of
from ..prefill import WARM_UP, cache_bytes
from ..setting import PruningSetting


@dataclass
class Timings:
    """Milliseconds of each counted round."""

    vision: list[float] = field(default_factory=list)
    select: list[float] = field(default_factory=list)
    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)


class _Clock(StoppingCriteria):
    """Records when each token was generated, and never stops the generation."""

    def __init__(self, device: torch.device):
        self.device, self.times = device, [_now(device)]

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        self.times.append(_now(self.device))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1e3 * time.perf_counter()


@contextmanager
def _vision_clock(model: nn.Module, device: torch.device) -> Iterator[list[float]]:
    """Yields a list of one number: milliseconds spent so far on the features of images and videos."""
    base, spent, depth = base_of(model), [0.0], [0]

    def timed(original: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            started = _now(device) if depth[0] == 0 else 0.0
            depth[0] += 1
            try:
                return original(*args, **kwargs)
            finally:
                depth[0] -= 1
                if depth[0] == 0:  # Qwen3-VL encodes videos through its image function
                    spent[0] += _now(device) - started

        return functools.update_wrapper(run, original)  # generate() reads the signature

    names = [name for name in ("get_image_features", "get_video_features") if hasattr(base, name)]
    for name in names:
        setattr(base, name, timed(getattr(base, name)))
    try:
        yield spent
    finally:
        for name in names:
            delattr(base, name)


@torch.inference_mode()
def profile(
    model: Any,
    inputs: Mapping[str, Tensor],
    settings: Sequence[PruningSetting],
    new_tokens: int = 8,
    rounds: int = 5,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> list[dict[str, Any]]:
    """Time `generate` under each setting.

    Each round runs every setting once, so that a slow moment of the machine affects all of them.

    Args:
        model: a supported model, not pruned.
        inputs: one batch.
        settings: the full model comes first in the results, whether it is among them or not.
        new_tokens: to generate, at least 2; times per decoded token are medians over them.
        rounds: counted rounds, after `WARM_UP` others.
        progress: wraps the iteration over rounds.

    Returns:
        One row per setting: `policy` and `keep`; of pruned ones `visual_tokens` of the batch and how many were
        `kept`, averaged over decoder layers; medians over the rounds, with quartiles under `..._quartiles`: `vision_ms`
        (encoder and projector), `select_ms`, `prefill_ms` (selection and language model up to the first token),
        `decode_ms_per_token`, `total_ms`; `ttft_ms`, the median of vision and prefill together; `kv_cache_bytes` after
        the prefill; `peak_bytes`, the most memory in use at a time during a prefill besides weights and inputs,
        the selection's included; `flops` of the prefill as torch counts them, with vision and without selection;
        `flops_formula`, those of the decoder in closed form; `prefill_saving_theoretical` (by that form) and
        `prefill_saving_realised` (by the clock), shares of the full prefill.

    Raises:
        ValueError: `new_tokens` is less than 2, or a policy cannot act on the model.
    """
    if new_tokens < 2:
        raise ValueError(f"new_tokens={new_tokens} must be at least 2: the first is the prefill's")
    settings = [PruningSetting(), *(setting for setting in settings if not setting.is_full)]
    device = next(model.parameters()).device
    times = [Timings() for _ in settings]
    generation = GenerationConfig(max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, pad_token_id=0)
    with _vision_clock(model, device) as vision:
        for i in progress(range(-WARM_UP, rounds)):
            for setting, into in zip(settings, times, strict=True):
                with setting.context(model):
                    vision[0], clock = 0.0, _Clock(device)
                    model.generate(
                        **inputs, generation_config=generation, stopping_criteria=StoppingCriteriaList([clock])
                    )
                    select_ms = sum((record.select_ms for record in setting.records(model)), 0.0)
                if i < 0:
                    continue
                steps = clock.times
                into.vision.append(vision[0])
                into.select.append(select_ms)
                into.prefill.append(steps[1] - steps[0] - vision[0])
                into.decode.append(statistics.median(b - a for a, b in itertools.pairwise(steps[1:])))
                into.total.append(steps[-1] - steps[0])
    rows = [_row(model, inputs, setting, of_setting) for setting, of_setting in zip(settings, times, strict=True)]
    full = rows[0]
    for row in rows:
        row["prefill_saving_theoretical"] = 1 - row["flops_formula"] / full["flops_formula"]
        row["prefill_saving_realised"] = 1 - row["prefill_ms"] / full["prefill_ms"]
    return rows


def count_flops() -> FlopCounterMode:
    """torch's FLOP counter, extended by the CPU's fused attention, which it lacks."""

    def attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
        return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])

    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={fused: attention})


def _row(model: Any, inputs: Mapping[str, Tensor], setting: PruningSetting, times: Timings) -> dict[str, Any]:
    row: dict[str, Any] = {"policy": setting.name, "keep": setting.keep}
    with setting.context(model):
        with count_flops() as counter:
            out = model(**inputs, use_cache=True, logits_to_keep=1)
        cache = getattr(out, CACHE_NAME)
        row["flops"], row["flops_formula"] = counter.get_total_flops(), decoder_flops(model, cache)
        row["kv_cache_bytes"] = cache_bytes(cache)
        del out, cache
        row["peak_bytes"] = _peak(lambda: model(**inputs, use_cache=True, logits_to_keep=1), model.device)
        if not setting.is_full:
            records = setting.records(model)
            layers = model.config.get_text_config().num_hidden_layers
            row["visual_tokens"] = sum(r.n_before for r in records)
            row["kept"] = round(sum(r.mean_tokens(layers) for r in records), 1)
    for name, unit in (
        ("vision", "vision_ms"),
        ("select", "select_ms"),
        ("prefill", "prefill_ms"),
        ("decode", "decode_ms_per_token"),
        ("total", "total_ms"),
    ):
        values = getattr(times, name)
        row[unit] = statistics.median(values)
        row[f"{unit}_quartiles"] = _quartiles(values)
    row["ttft_ms"] = statistics.median(a + b for a, b in zip(times.vision, times.prefill, strict=True))
    return row


def _quartiles(values: list[float]) -> list[float]:
    if len(values) == 1:
        return values * 2
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return [first, third]


def decoder_flops(model: Any, cache: Any) -> int:
    """FLOPs of one prefill through the decoder layers in closed form, a multiplication and an addition counted as two.

    Per row and layer with L tokens: 2 L times the number of elements of the layer's matrices, and 4 L^2 times the
    width of its heads for attention scores and values. Causality does not halve the latter, as torch counts. L is the
    length of the layer's KV cache, padding included.

    Args:
        model: a supported model.
        cache: filled by the prefill.
    """
    text = base_of(model).get_submodule(family_of(model).text_model)
    total = 0
    for layer, of_layer in zip(text.layers, cache.layers, strict=True):
        batch, _, length, _ = of_layer.keys.shape
        matrices = sum(p.numel() for p in layer.parameters() if p.ndim == 2)
        heads = layer.self_attn.o_proj.in_features
        total += batch * (2 * length * matrices + 4 * length**2 * heads)
    return total


def _peak(run: Callable[[], Any], device: torch.device) -> int:
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


def verdict(row: Mapping[str, Any], full: Mapping[str, Any]) -> str:
    """How much of a whole request a setting saves, in words, and if that is little, why.

    Args:
        row: of a setting, of `profile`.
        full: the full model's row.
    """
    gain = 1 - row["total_ms"] / full["total_ms"]
    if gain >= 0.05:
        return f"saves {row['prefill_saving_realised']:.0%} of the prefill and {gain:.0%} of the request"
    saved = full["prefill_ms"] - (row["prefill_ms"] - row["select_ms"])
    decode = full["total_ms"] - full["ttft_ms"]
    if row["select_ms"] > 0 and row["select_ms"] >= 0.5 * saved:
        why = f"selector-bound: choosing takes {row['select_ms']:.1f} ms, a shorter prefill saves {saved:.1f}"
    elif full["vision_ms"] >= max(full["prefill_ms"], decode):
        why = f"vision-bound: the encoder takes {full['vision_ms'] / full['total_ms']:.0%} of the request either way"
    elif decode >= full["prefill_ms"]:
        why = f"decode-bound: {decode / full['total_ms']:.0%} of the request is decoding"
    else:
        why = "the prefill itself hardly gets shorter"
    verb = "loses" if gain < 0 else "gains under 5%:"
    return f"{verb} {abs(gain):.1%} of the request; {why}"
