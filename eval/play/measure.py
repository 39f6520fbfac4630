"""One question about one picture under several settings: the answers, their tokens and their times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import StoppingCriteriaList

from ...patches import Record
from ...patches.cache import cache_among
from ..answers import question_inputs
from ..prefill import cache_bytes
from ..profile.counting import TokenClock
from ..profile.vision import vision_of
from ..setting import PruningSetting

ROUNDS = 5  # at most, of which times are medians
_SECONDS = 1.5  # no further round begins after so long


@dataclass(frozen=True)
class Outcome:
    """A model's answer under a setting, and what it cost. Times are medians over the rounds.

    Attributes:
        answer: the text.
        answer_tokens: generated tokens, the one that ends the answer included.
        records: what was kept of the picture; empty for the full model.
        kv_cache_bytes: KV cache after the prefill.
        vision_ms: vision encoder and projector.
        select_ms: choosing tokens before and inside the language model; part of `prefill_ms`.
        prefill_ms: selection and language model up to the first token.
        total_ms: everything up to the last token.
        rounds: how often times were taken.
    """

    answer: str
    answer_tokens: int
    records: tuple[Record, ...]
    kv_cache_bytes: int
    vision_ms: float
    select_ms: float
    prefill_ms: float
    total_ms: float
    rounds: int


@dataclass
class _Runs:
    """What `generate()` did under one setting: tokens and records of the last run, milliseconds of each."""

    kv_cache_bytes: int
    tokens: Tensor | None = None
    records: tuple[Record, ...] = ()
    vision: list[float] = field(default_factory=list)
    select: list[float] = field(default_factory=list)
    prefill: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)


@torch.inference_mode()
def measure(
    model: Any,
    processor: Any,
    picture: Image.Image,
    question: str,
    settings: Sequence[PruningSetting],
    new_tokens: int,
) -> list[Outcome]:
    """Ask under each setting: the first token to warm up, then up to `ROUNDS` answers.

    Each round runs every setting once, so that a slow moment of the machine affects all of them. A slow model is asked
    once.

    Args:
        model: a supported model, not pruned.
        processor: its processor.
        picture: in RGB.
        question: what to ask about it.
        settings: how the model is pruned.
        new_tokens: longest answer, in tokens.

    Raises:
        ValueError: a setting does not fit the model, or the processor has no chat template.
    """
    inputs = question_inputs(model, processor, picture, question)
    runs = []
    for setting in settings:
        with setting.context(model):
            first = model.generate(**inputs, max_new_tokens=1, do_sample=False, return_dict_in_generate=True)
            runs.append(_Runs(cache_bytes(cache_among(first))))  # the first token is not in the cache yet
            del first
    started, rounds = time.perf_counter(), 0
    while rounds == 0 or (rounds < ROUNDS and time.perf_counter() - started < _SECONDS):
        for setting, of_setting in zip(settings, runs, strict=True):
            _answer(model, inputs, setting, new_tokens, of_setting)
        rounds += 1
    return [_outcome(processor, inputs["input_ids"].shape[1], of_setting) for of_setting in runs]


def _answer(model: Any, inputs: Any, setting: PruningSetting, new_tokens: int, runs: _Runs) -> None:
    """Generate once under a setting, and note tokens, records and times."""
    with vision_of(model, model.device) as vision, setting.context(model):
        clock = TokenClock(model.device)
        criteria = StoppingCriteriaList([clock])
        tokens = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, stopping_criteria=criteria)
        runs.records = tuple(setting.records(model))
    runs.tokens = tokens[0]
    runs.vision.append(vision.spent)
    runs.select.append(sum((record.select_ms_in_prefill for record in runs.records), 0.0))
    runs.prefill.append(clock.times[1] - clock.times[0] - vision.spent)
    runs.total.append(clock.times[-1] - clock.times[0])


def _outcome(processor: Any, prompt: int, runs: _Runs) -> Outcome:
    """The outcome of the runs under a setting, after a prompt of so many tokens."""
    assert runs.tokens is not None
    generated = runs.tokens[prompt:]
    return Outcome(
        answer=processor.decode(generated, skip_special_tokens=True).strip(),
        answer_tokens=len(generated),
        records=runs.records,
        kv_cache_bytes=runs.kv_cache_bytes,
        vision_ms=statistics.median(runs.vision),
        select_ms=statistics.median(runs.select),
        prefill_ms=statistics.median(runs.prefill),
        total_ms=statistics.median(runs.total),
        rounds=len(runs.total),
    )
