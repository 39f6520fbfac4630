"""Vision encoder, selection, prefill, decoding, memory and FLOPs, measured full and pruned within one run."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteriaList

from ...patches.cache import cache_name
from ..prefill import WARM_UP, cache_bytes
from ..setting import PruningSetting
from .counting import TokenClock, busy_ms, count_flops, decoder_flops, peak_bytes
from .vision import Vision, runs_the_encoder, vision_of
from .work import Work

#: Counted rounds where none are asked for: the most, the least, and the seconds after which no more than these run.
ROUNDS, FEWEST_ROUNDS, SECONDS = 5, 3, 30.0
_VISION_SECONDS = 5.0  # after which the encoder's own rounds end
_WARM_SECONDS = 5.0  # a prefill that takes longer needs no warming up


@dataclass
class Timings:
    """Milliseconds of each counted round."""

    vision: list[float] = field(default_factory=list)
    select: list[float] = field(default_factory=list)
    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)


@torch.inference_mode()
def profile(
    model: Any,
    inputs: Mapping[str, Tensor],
    settings: Sequence[PruningSetting],
    new_tokens: int = 8,
    rounds: int | None = ROUNDS,
    work: Work | None = None,
) -> list[dict[str, Any]]:
    """Time `generate` under each setting.

    Each round runs every setting once, so that a slow moment of the machine affects all of them. Visual inputs are
    encoded in rounds of their own, whose times count for every setting that leaves the vision encoder alone; where a
    policy reads the encoder or acts inside it, they are encoded in each of its calls.

    Args:
        model: a supported model, not pruned.
        inputs: one batch.
        settings: the full model comes first in the results, whether it is among them or not.
        new_tokens: to generate, at least 2; times per decoded token are medians over them.
        rounds: counted rounds, after `WARM_UP` others; None: `ROUNDS`, or fewer where they take long, `FEWEST_ROUNDS`
            at least.
        work: is told what is done.

    Returns:
        One row per setting: `policy` and `keep`; of pruned ones `visual_tokens` of the batch and how many were
        `kept`, averaged over decoder layers; `rounds`; medians over the rounds, with quartiles under `..._quartiles`:
        `vision_ms` (encoder and projector), `select_ms`, `prefill_ms` (selection and language model up to the first
        token), `decode_ms_per_token`, `total_ms`; `ttft_ms`, the median of vision and prefill together;
        on a GPU `ttft_gpu_ms`, how long it computes up to the first token, in one further run;
        `kv_cache_bytes` after the prefill; `peak_bytes`, the most memory in use at a time during a prefill besides
        weights and inputs, the selection's included; `flops` of the prefill as torch counts them, with vision and
        without selection before the language model; `vision_flops`, those of encoder and projector as they ran;
        `flops_formula`, those of the decoder in closed form; `prefill_saving_theoretical` (by that
        form) and `prefill_saving_realised` (by the clock), shares of the full prefill; `vision_saving_realised` and
        `request_saving_realised`, shares of the full encoder's time and of the whole request's.

    Raises:
        ValueError: `new_tokens` is less than 2, or a policy cannot act on the model.
    """
    if new_tokens < 2:
        raise ValueError(f"new_tokens={new_tokens} must be at least 2: the first is the prefill's")
    settings = [PruningSetting(), *(setting for setting in settings if not setting.is_full)]
    for setting in settings:  # what a policy cannot act on is said before anything runs
        with setting.context(model):
            pass
    device, work = next(model.parameters()).device, work or Work()
    with vision_of(model, device) as vision:
        with work.encoding(model):
            vision.encode_once(lambda: model(**inputs, use_cache=True, logits_to_keep=1))
        work.expect(1, 1, ROUNDS if rounds is None else rounds)
        encoder_ms = _time_encoder(vision, rounds or ROUNDS, work)
        work.expect(0, 1, ROUNDS if rounds is None else rounds)
        measured = _Measured(model, inputs, vision, new_tokens)
        started = time.perf_counter()
        rows = []
        for setting in settings:
            rows.append(measured.count(setting))
            work.did_prefill(setting)
        slow = (time.perf_counter() - started) / len(settings) > _WARM_SECONDS
        times = [Timings() for _ in settings]
        started = time.perf_counter()
        for i in range(0 if slow else -WARM_UP, rounds or ROUNDS):
            if rounds is None and i >= FEWEST_ROUNDS and time.perf_counter() - started > SECONDS:
                break
            work.expect(0, 0, (rounds or ROUNDS) - i)
            for setting, of_setting in zip(settings, times, strict=True):
                measured.time(setting, Timings() if i < 0 else of_setting, encoder_ms)
                work.did_request(setting)
    for setting, row, of_setting in zip(settings, rows, times, strict=True):
        row |= _medians(of_setting, None if runs_the_encoder(setting) else encoder_ms)
        with setting.context(model):
            busy = busy_ms(lambda: model(**inputs, use_cache=True, logits_to_keep=1), device)
        row |= {} if busy is None else {"ttft_gpu_ms": busy}
        row["prefill_saving_theoretical"] = 1 - row["flops_formula"] / rows[0]["flops_formula"]
        row["prefill_saving_realised"] = 1 - row["prefill_ms"] / rows[0]["prefill_ms"]
        row["vision_saving_realised"] = 1 - row["vision_ms"] / rows[0]["vision_ms"]
        row["request_saving_realised"] = 1 - row["total_ms"] / rows[0]["total_ms"]
    return rows


def _time_encoder(vision: Vision, rounds: int, work: Work) -> list[float]:
    """Milliseconds of the encoder by round: `rounds` times, or fewer where they take long.

    Where counting its FLOPs has taken that long already, counting hardly mattered, and that is the only time.
    """
    if vision.count_ms > 1e3 * _VISION_SECONDS:
        return [vision.count_ms]
    times: list[float] = []
    while len(times) < rounds and sum(times) < 1e3 * _VISION_SECONDS:
        times.append(vision.time_once())
        work.did_encode()
    return times


@dataclass
class _Measured:
    """What is measured.

    Attributes:
        model: not pruned.
        inputs: one batch.
        vision: the model's feature functions, with the features of these inputs.
        new_tokens: to generate.
    """

    model: Any
    inputs: Mapping[str, Tensor]
    vision: Vision
    new_tokens: int

    def _replayed(self, setting: PruningSetting, anew: bool = False) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if runs_the_encoder(setting) else self.vision.replayed(anew)

    def time(self, setting: PruningSetting, into: Timings, encoder_ms: Sequence[float]) -> None:
        """Time a request."""
        model, vision, n = self.model, self.vision, self.new_tokens
        generation = GenerationConfig(max_new_tokens=n, min_new_tokens=n, do_sample=False, pad_token_id=0)
        with setting.context(model), self._replayed(setting):
            vision.spent, clock = 0.0, TokenClock(vision.device)
            stop = StoppingCriteriaList([clock])
            model.generate(**self.inputs, generation_config=generation, stopping_criteria=stop)
            select_ms = sum((record.select_ms_in_prefill for record in setting.records(model)), 0.0)
        steps, spent = clock.times, vision.spent
        of_encoder = spent if runs_the_encoder(setting) else statistics.median(encoder_ms)
        into.vision.append(of_encoder)
        into.select.append(select_ms)
        into.prefill.append(steps[1] - steps[0] - spent)
        into.decode.append(statistics.median(b - a for a, b in itertools.pairwise(steps[1:])))
        into.total.append(steps[-1] - steps[0] - spent + of_encoder)

    def count(self, setting: PruningSetting) -> dict[str, Any]:
        """What a prefill computes and holds, of `profile`'s row."""
        model, vision, made = self.model, self.vision, []
        row: dict[str, Any] = {"policy": setting.name, "keep": setting.keep}
        with setting.context(model), self._replayed(setting, anew=True), vision.counted(), count_flops() as counter:
            forward = lambda: made.append(model(**self.inputs, use_cache=True, logits_to_keep=1))
            row["peak_bytes"] = peak_bytes(forward, vision.device)
            records = setting.records(model)
        row["flops"], row["vision_flops"] = counter.get_total_flops(), vision.ran_flops
        if not runs_the_encoder(setting):
            row["flops"] += vision.flops
            row["vision_flops"] = vision.flops
            row["peak_bytes"] = max(vision.peak_bytes, row["peak_bytes"])
        cache = getattr(made[0], cache_name())
        row["flops_formula"], row["kv_cache_bytes"] = decoder_flops(model, cache), cache_bytes(cache)
        if not setting.is_full:
            row["visual_tokens"] = sum(r.n_before for r in records)
            row["kept"] = round(sum(r.mean for r in records), 1)
        return row


def _medians(times: Timings, encoder_ms: Sequence[float] | None) -> dict[str, Any]:
    """The columns of `profile`'s row that are times, where the encoder had rounds of its own with their quartiles."""
    row: dict[str, Any] = {"rounds": len(times.total)}
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
    if encoder_ms is not None:
        row["vision_ms_quartiles"] = _quartiles(list(encoder_ms))
    row["ttft_ms"] = statistics.median(a + b for a, b in zip(times.vision, times.prefill, strict=True))
    return row


def _quartiles(values: list[float]) -> list[float]:
    if len(values) == 1:
        return values * 2
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return [first, third]


def verdict(row: Mapping[str, Any], full: Mapping[str, Any]) -> str:
    """How much of a whole request a setting saves, in words, and if that is little, why.

    Args:
        row: of a setting, of `profile`.
        full: the full model's row.
    """
    gain = 1 - row["total_ms"] / full["total_ms"]
    if gain >= 0.05:
        of_vision = 1 - row["vision_ms"] / full["vision_ms"] if row["vision_flops"] < full["vision_flops"] else 0.0
        parts = [f"{row['prefill_saving_realised']:.0%} of the prefill"]
        parts += [f"{of_vision:.0%} of the vision encoder"] if of_vision else []
        first = f"the first token comes {full['ttft_ms'] / row['ttft_ms']:.1f} times as fast"
        return f"saves {gain:.0%} of the request ({', '.join(parts)}); {first}{_waiting(row, full)}"
    saved = full["prefill_ms"] - (row["prefill_ms"] - row["select_ms"])
    decode = full["total_ms"] - full["ttft_ms"]
    if row["select_ms"] > 0 and row["select_ms"] >= 0.5 * saved:
        why = f"selector-bound: choosing takes {row['select_ms']:.1f} ms, a shorter prefill saves {saved:.1f}"
    elif full["vision_ms"] >= max(full["prefill_ms"], decode):
        share = full["vision_ms"] / full["total_ms"]
        why = (
            f"vision-bound: the encoder takes {share:.0%} of the request; a policy of the stage pixels makes it cheaper"
        )
    elif decode >= full["prefill_ms"]:
        why = f"decode-bound: {decode / full['total_ms']:.0%} of the request is decoding"
    else:
        why = "the prefill itself hardly gets shorter"
    verb = "loses" if gain < 0 else "gains under 5%:"
    return f"{verb} {abs(gain):.1%} of the request; {why}{_waiting(row, full)}"


def _waiting(row: Mapping[str, Any], full: Mapping[str, Any]) -> str:
    """A remark where the GPU waits for launches of kernels for half of the time or more."""
    if "ttft_gpu_ms" not in row or row["ttft_gpu_ms"] > 0.5 * row["ttft_ms"]:
        return ""
    parts = [f"{each['ttft_gpu_ms']:.0f} of {each['ttft_ms']:.0f} ms" for each in (full, row)]
    return (
        f". Launch-bound: up to the first token the GPU computes for {parts[0]} (full) and {parts[1]} (pruned); "
        "a larger batch, CUDA graphs or an engine that has them gain more"
    )
